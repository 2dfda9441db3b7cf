import {
  ChangeMessageVisibilityCommand,
  DeleteMessageCommand,
  GetQueueAttributesCommand,
  ReceiveMessageCommand,
  SendMessageBatchCommand,
  SQSClient,
} from "@aws-sdk/client-sqs";
import { AppError } from "../errors.ts";
import { clientSettings, sending } from "./client.ts";
import type { Outgoing } from "./orders.ts";

/** Messages a request: what SQS takes. */
const BATCH_MAX = 10;

/** The longest that SQS lets a receiver wait, seconds. */
const WAIT_SECONDS = 20;

/** From when it was received no message stays hidden for longer than this, seconds (SQS quotas). */
const HIDDEN_MAX_SECONDS = 43_200;

/** A message that was received, and is hidden from others for a while. */
export interface Message {
  readonly id: string;
  readonly body: string;
  /** What this receiver names it by, until it is shown to another. */
  readonly receipt: string;
  /** How often it was received until now, from 1. */
  readonly receives: number;
}

/**
 * A queue of SQS, first-in-first-out or standard: the former sends each message once and those of a group one after the
 * other. Nothing here relies on that: whoever works on messages must bear them twice.
 *
 * Every call tries again what may pass, and throws AppError E_NO_QUEUE (notFound), E_QUEUE_ACCESS, E_CREDENTIALS
 * (credentials), E_QUEUE (unavailable), E_QUEUE_REFUSED, E_REGION (usage).
 */
export class WorkQueue {
  readonly url: string;
  readonly #client: SQSClient;

  constructor(url: string, environment: Readonly<Record<string, string | undefined>>) {
    this.url = url;
    const elsewhere = environment["AWS_ENDPOINT_URL_SQS"] ?? environment["AWS_ENDPOINT_URL"];
    this.#client = new SQSClient({
      ...clientSettings(url, environment),
      useQueueUrlAsEndpoint: elsewhere === undefined, // the SDK would prefer the URL's host even then
    });
  }

  /** Waits up to 20 s for a message. @param hiddenSeconds how long nobody else is shown it. */
  async receive(hiddenSeconds: number, signal: AbortSignal): Promise<Message | undefined> {
    const command = new ReceiveMessageCommand({
      QueueUrl: this.url,
      MaxNumberOfMessages: 1,
      WaitTimeSeconds: WAIT_SECONDS,
      VisibilityTimeout: hiddenSeconds,
      MessageSystemAttributeNames: ["ApproximateReceiveCount"],
    });
    const { Messages: [message] = [] } = await sending(this.url, "ReceiveMessage", signal, () =>
      this.#client.send(command, { abortSignal: signal }),
    );
    if (message === undefined) return undefined;
    return {
      id: message.MessageId ?? "",
      body: message.Body ?? "",
      receipt: message.ReceiptHandle ?? "",
      receives: Number(message.Attributes?.ApproximateReceiveCount ?? 1),
    };
  }

  /** Ends a message. @throws also AppError E_MESSAGE_LOST (locked). */
  async delete({ receipt }: Pick<Message, "receipt">, signal: AbortSignal): Promise<void> {
    const command = new DeleteMessageCommand({ QueueUrl: this.url, ReceiptHandle: receipt });
    await sending(this.url, "DeleteMessage", signal, () =>
      this.#client.send(command, { abortSignal: signal }),
    );
  }

  /** Hides a message for so long from now on; 0 gives it back at once. @throws also AppError E_MESSAGE_LOST (locked). */
  async hide({ receipt }: Pick<Message, "receipt">, seconds: number, signal: AbortSignal): Promise<void> {
    const command = new ChangeMessageVisibilityCommand({
      QueueUrl: this.url,
      ReceiptHandle: receipt,
      VisibilityTimeout: Math.min(Math.round(seconds), HIDDEN_MAX_SECONDS),
    });
    await sending(this.url, "ChangeMessageVisibility", signal, () =>
      this.#client.send(command, { abortSignal: signal }),
    );
  }

  /**
   * Sends all messages; those that were sent when it fails stay sent.
   * @throws also AppError E_QUEUE_REFUSED for the first that the queue did not take.
   */
  async send(messages: readonly Outgoing[], signal: AbortSignal): Promise<void> {
    const fifo = this.url.endsWith(".fifo");
    for (let from = 0; from < messages.length; from += BATCH_MAX) {
      const command = new SendMessageBatchCommand({
        QueueUrl: this.url,
        Entries: messages.slice(from, from + BATCH_MAX).map(({ body, group, once }, index) => ({
          Id: String(index),
          MessageBody: body,
          ...(fifo && { MessageGroupId: group, MessageDeduplicationId: once }),
        })),
      });
      const { Failed: [failed] = [] } = await sending(this.url, "SendMessageBatch", signal, () =>
        this.#client.send(command, { abortSignal: signal }),
      );
      if (failed === undefined) continue;
      const message = `${this.url}: a message was not taken: ${failed.Code ?? "?"} ${failed.Message ?? ""}`;
      throw new AppError("usage", "E_QUEUE_REFUSED", message.trimEnd(), { place: this.url });
    }
  }

  /** How many messages wait, about. */
  async waiting(signal: AbortSignal): Promise<number> {
    const command = new GetQueueAttributesCommand({
      QueueUrl: this.url,
      AttributeNames: ["ApproximateNumberOfMessages"],
    });
    const { Attributes: attributes } = await sending(this.url, "GetQueueAttributes", signal, () =>
      this.#client.send(command, { abortSignal: signal }),
    );
    return Number(attributes?.ApproximateNumberOfMessages ?? 0);
  }

  close(): void {
    this.#client.destroy();
  }
}
