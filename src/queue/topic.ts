import { PublishCommand, SNSClient } from "@aws-sdk/client-sns";
import { clientSettings, sending } from "./client.ts";

/** Characters of a subject: what SNS takes, printable ASCII. */
const SUBJECT_MAX = 100;

/** Bytes of a message: what SNS takes, and some room. */
const TEXT_MAX = 200_000;

/**
 * Says something to all who listen to a topic of SNS.
 *
 * @throws AppError E_NO_QUEUE (notFound), E_QUEUE_ACCESS, E_CREDENTIALS (credentials), E_QUEUE (unavailable),
 *   E_QUEUE_REFUSED, E_REGION (usage).
 */
export async function publish(
  arn: string,
  { subject, text }: { readonly subject: string; readonly text: string },
  environment: Readonly<Record<string, string | undefined>>,
  signal: AbortSignal,
): Promise<void> {
  const client = new SNSClient(clientSettings(arn, environment));
  const command = new PublishCommand({
    TopicArn: arn,
    Subject: subject.replaceAll(/[^\x20-\x7e]/g, "?").slice(0, SUBJECT_MAX),
    Message: Buffer.from(text).subarray(0, TEXT_MAX).toString(),
  });
  try {
    await sending(arn, "Publish", signal, () => client.send(command, { abortSignal: signal }));
  } finally {
    client.destroy();
  }
}
