import type { AddressInfo } from "node:net";
import {
  CreateQueueCommand,
  DeleteMessageCommand,
  DeleteQueueCommand,
  GetQueueAttributesCommand,
  ReceiveMessageCommand,
  SendMessageCommand,
  SQSClient,
} from "@aws-sdk/client-sqs";
import { CreateTopicCommand, SNSClient, SubscribeCommand } from "@aws-sdk/client-sns";
import { buildApp } from "fauxqs";
import { onTestFinished, vi } from "vitest";

const REGION = "us-east-1";

/** SQS and SNS on loopback, in this process (fauxqs), and clients that see to it what they hold. The environment leads there until the test ends. */
export class AwsStandIn {
  /** For whatever talks to it by the SDK's own environment. */
  readonly environment: Readonly<Record<string, string>>;
  readonly #sqs: SQSClient;
  readonly #sns: SNSClient;

  private constructor(endpoint: string) {
    const credentials = { accessKeyId: "stand-in", secretAccessKey: "stand-in" };
    this.environment = {
      AWS_ENDPOINT_URL_SQS: endpoint,
      AWS_ENDPOINT_URL_SNS: endpoint,
      AWS_REGION: REGION,
      AWS_ACCESS_KEY_ID: credentials.accessKeyId,
      AWS_SECRET_ACCESS_KEY: credentials.secretAccessKey,
    };
    const options = { endpoint, region: REGION, credentials };
    this.#sqs = new SQSClient(options);
    this.#sns = new SNSClient(options);
  }

  static async start(): Promise<AwsStandIn> {
    const app = buildApp({ logger: false });
    await app.listen({ port: 0, host: "127.0.0.1" });
    const { port } = app.server.address() as AddressInfo;
    onTestFinished(async () => {
      app.server.closeAllConnections();
      await app.close();
    });
    const standIn = new AwsStandIn(`http://127.0.0.1:${port}`);
    for (const [name, value] of Object.entries(standIn.environment)) vi.stubEnv(name, value);
    onTestFinished(() => void vi.unstubAllEnvs());
    return standIn;
  }

  /** @param deadLetters URL of the queue for what was received twice in vain. @returns its URL. */
  async queue(name: string, deadLetters?: string): Promise<string> {
    const fifo = name.endsWith(".fifo");
    const redrive =
      deadLetters === undefined
        ? {}
        : {
            RedrivePolicy: JSON.stringify({
              deadLetterTargetArn: await this.arn(deadLetters),
              maxReceiveCount: 2,
            }),
          };
    const Attributes = { ...(fifo && { FifoQueue: "true" }), ...redrive };
    return (await this.#sqs.send(new CreateQueueCommand({ QueueName: name, Attributes }))).QueueUrl!;
  }

  async removeQueue(url: string): Promise<void> {
    await this.#sqs.send(new DeleteQueueCommand({ QueueUrl: url }));
  }

  async arn(url: string): Promise<string> {
    return (await this.#attributes(url))["QueueArn"]!;
  }

  /** Messages that wait, and messages that somebody has. */
  async counts(url: string): Promise<{ readonly waiting: number; readonly taken: number }> {
    const attributes = await this.#attributes(url);
    return {
      waiting: Number(attributes["ApproximateNumberOfMessages"]),
      taken: Number(attributes["ApproximateNumberOfMessagesNotVisible"]),
    };
  }

  /** Sends a message as somebody else would. */
  async send(url: string, body: string, group = "g"): Promise<void> {
    const fifo = url.endsWith(".fifo");
    const more = fifo
      ? { MessageGroupId: group, MessageDeduplicationId: `${Date.now()}${Math.random()}` }
      : {};
    await this.#sqs.send(new SendMessageCommand({ QueueUrl: url, MessageBody: body, ...more }));
  }

  /** Takes up to ten messages, as an event source mapping does. */
  async receive(url: string, hiddenSeconds = 30): Promise<SqsRecord[]> {
    const { Messages = [] } = await this.#sqs.send(
      new ReceiveMessageCommand({
        QueueUrl: url,
        MaxNumberOfMessages: 10,
        VisibilityTimeout: hiddenSeconds,
        MessageSystemAttributeNames: ["All"],
      }),
    );
    return Messages.map((message) => ({
      messageId: message.MessageId!,
      receiptHandle: message.ReceiptHandle!,
      body: message.Body!,
      attributes: { ...message.Attributes },
    }));
  }

  /** Ends a message. */
  async remove(url: string, { receiptHandle }: SqsRecord): Promise<void> {
    await this.#sqs.send(new DeleteMessageCommand({ QueueUrl: url, ReceiptHandle: receiptHandle }));
  }

  /** A topic whose messages arrive in a queue. */
  async topic(name: string): Promise<{ readonly arn: string; readonly queue: string }> {
    const { TopicArn } = await this.#sns.send(new CreateTopicCommand({ Name: name }));
    const queue = await this.queue(`${name}-heard`);
    const Endpoint = await this.arn(queue);
    await this.#sns.send(
      new SubscribeCommand({
        TopicArn,
        Protocol: "sqs",
        Endpoint,
        Attributes: { RawMessageDelivery: "true" },
      }),
    );
    return { arn: TopicArn!, queue };
  }

  async #attributes(url: string): Promise<Record<string, string>> {
    const command = new GetQueueAttributesCommand({ QueueUrl: url, AttributeNames: ["All"] });
    return (await this.#sqs.send(command)).Attributes!;
  }
}

/** As Lambda hands over a message. */
export interface SqsRecord {
  readonly messageId: string;
  readonly receiptHandle: string;
  readonly body: string;
  readonly attributes: Readonly<Record<string, string>>;
}
