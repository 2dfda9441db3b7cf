import { writeFile } from "node:fs/promises";
import { vi } from "vitest";
import { handler as watch, type WatchResult } from "../../src/lambda/watch.ts";
import { AwsStandIn } from "./aws-stand-in.ts";
import { captureLines, contextOf } from "./functions.ts";
import { OrderPlace } from "./order-place.ts";

/** What the functions live in, and what a test sees of it. */
export interface Stack {
  readonly aws: AwsStandIn;
  readonly place: OrderPlace;
  readonly queue: string;
  readonly upkeep: string;
  readonly topic: { readonly arn: string; readonly queue: string };
  readonly lines: readonly Record<string, unknown>[];
  /** What is wrong, and what was told. */
  look(): Promise<WatchResult>;
  /** Messages to people since the last call. */
  heard(): Promise<string[]>;
}

/** Queues, a topic, a place for a repository, a source, and the environment that the functions get. @param more fields of the job. */
export async function stack(more = "", size?: number): Promise<Stack> {
  const aws = await AwsStandIn.start();
  const place = await OrderPlace.make(size);
  const letters = await aws.queue("letters.fifo");
  const queue = await aws.queue("work.fifo", letters);
  const upkeep = await aws.queue("upkeep.fifo", letters);
  const topic = await aws.topic("alarms");
  await writeFile(place.path("blockhaul.yaml"), place.text(more));
  const environment = {
    BLOCKHAUL_CONFIG: place.path("blockhaul.yaml"),
    BLOCKHAUL_QUEUE_URL: queue,
    BLOCKHAUL_MAINTAIN_QUEUE_URL: upkeep,
    BLOCKHAUL_TOPIC_ARN: topic.arn,
    BLOCKHAUL_DEAD_LETTER_URLS: letters,
    BLOCKHAUL_NOTES: place.path("notes"),
    BLOCKHAUL_CACHE_DIR: place.path("cache"),
  };
  for (const [name, value] of Object.entries(environment)) vi.stubEnv(name, value);
  const heard = async (): Promise<string[]> => {
    const records = await aws.receive(topic.queue);
    for (const record of records) await aws.remove(topic.queue, record);
    return records.map(({ body }) => body);
  };
  const lines = captureLines();
  return { aws, place, queue, upkeep, topic, lines, heard, look: () => watch({}, contextOf("watch")) };
}
