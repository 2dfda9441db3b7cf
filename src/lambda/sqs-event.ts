import { z } from "zod";
import { AppError, messageOf } from "../errors.ts";
import type { WorkQueue } from "../queue/queue.ts";
import type { Log } from "./log.ts";

const recordSchema = z.object({
  messageId: z.string(),
  receiptHandle: z.string(),
  body: z.string(),
  attributes: z.object({ ApproximateReceiveCount: z.coerce.number().int().min(1).catch(1) }),
});

const eventSchema = z.object({ Records: z.array(recordSchema).max(10_000) });

/** A message as Lambda hands it over. */
export type SqsRecord = z.infer<typeof recordSchema>;

/** Messages that are to come again; the others are deleted. */
export interface BatchResponse {
  readonly batchItemFailures: readonly { readonly itemIdentifier: string }[];
}

/** What is to become of a message. */
export type Settlement =
  | "done"
  /** It comes again after so many seconds; undefined: after what the queue says. */
  | { readonly againIn: number | undefined };

/**
 * Works on the messages of an event one after the other, each by itself: those that failed come again, and no others.
 *
 * @param work may throw: the message then comes again.
 * @throws AppError E_EVENT (usage): it is no event of a queue.
 */
export async function eachMessage(
  event: unknown,
  queue: WorkQueue,
  log: Log,
  work: (record: SqsRecord) => Promise<Settlement>,
): Promise<BatchResponse> {
  const parsed = eventSchema.safeParse(event);
  if (!parsed.success) {
    const message = "The event is none of a queue: this function takes messages of SQS";
    throw new AppError("usage", "E_EVENT", message, {}, parsed.error);
  }
  const batchItemFailures: { itemIdentifier: string }[] = [];
  for (const record of parsed.data.Records) {
    const settlement = await work(record).catch((error: unknown): Settlement => {
      log.error(error, { message: record.messageId });
      return { againIn: undefined };
    });
    if (settlement === "done") continue;
    batchItemFailures.push({ itemIdentifier: record.messageId });
    if (settlement.againIn !== undefined) await putOff(record, settlement.againIn, queue, log);
  }
  return { batchItemFailures };
}

/** The queue's own time to show it again is made for functions that died; this one knows better. */
async function putOff(record: SqsRecord, seconds: number, queue: WorkQueue, log: Log): Promise<void> {
  try {
    await queue.hide({ receipt: record.receiptHandle }, seconds, AbortSignal.timeout(5000));
  } catch (error) {
    log.warn(`The message comes again when the queue says so: ${messageOf(error)}`, {
      message: record.messageId,
    });
  }
}
