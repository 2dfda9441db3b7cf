import { writeFile } from "node:fs/promises";
import { expect } from "vitest";
import type { BatchResponse } from "../../src/lambda/sqs-event.ts";
import type { WatchResult } from "../../src/lambda/watch.ts";
import { AwsStandIn, type SqsRecord } from "./aws-stand-in.ts";
import { LambdaService } from "./lambda-service.ts";
import { OrderPlace } from "./order-place.ts";

export type FunctionName = "dispatch" | "pull" | "maintain" | "watch";

/** What the functions live in, and what a test sees of it. */
export class Stack {
  readonly aws: AwsStandIn;
  readonly place: OrderPlace;
  readonly queue: string;
  readonly upkeep: string;
  readonly letters: string;
  readonly topic: { readonly arn: string; readonly queue: string };
  /** What the functions have. */
  environment: Readonly<Record<string, string>>;
  readonly #deployed = new Map<FunctionName, Promise<LambdaService>>();
  readonly #all: LambdaService[] = [];

  private constructor(parts: Pick<Stack, "aws" | "place" | "queue" | "upkeep" | "letters" | "topic">) {
    const { aws, place, queue, upkeep, letters, topic } = parts;
    this.aws = aws;
    this.place = place;
    this.queue = queue;
    this.upkeep = upkeep;
    this.letters = letters;
    this.topic = topic;
    this.environment = {
      ...aws.environment,
      BLOCKHAUL_CONFIG: place.path("blockhaul.yaml"),
      BLOCKHAUL_QUEUE_URL: queue,
      BLOCKHAUL_MAINTAIN_QUEUE_URL: upkeep,
      BLOCKHAUL_TOPIC_ARN: topic.arn,
      BLOCKHAUL_DEAD_LETTER_URLS: letters,
      BLOCKHAUL_NOTES: place.path("notes"),
      BLOCKHAUL_CACHE_DIR: place.path("cache"),
    };
  }

  /** Queues, a topic, a place for a repository, a source, and the environment that the functions get. @param more fields of the job. */
  static async start(more = "", size?: number): Promise<Stack> {
    const aws = await AwsStandIn.start();
    const place = await OrderPlace.make(size);
    const letters = await aws.queue("letters.fifo");
    const queue = await aws.queue("work.fifo", letters);
    const upkeep = await aws.queue("upkeep.fifo", letters);
    const topic = await aws.topic("alarms");
    await writeFile(place.path("blockhaul.yaml"), place.text(more));
    return new Stack({ aws, place, queue, upkeep, letters, topic });
  }

  /** Other settings of the functions; what ran with the old ones runs no more. */
  deploy(environment: Readonly<Record<string, string>>): void {
    this.environment = { ...this.environment, ...environment };
    this.#deployed.clear();
  }

  /** The function; the same, and warm, until the next `deploy`. */
  async function(name: FunctionName): Promise<LambdaService> {
    const deployed = this.#deployed.get(name);
    if (deployed !== undefined) return await deployed;
    const service = LambdaService.start({ handler: `${name}.handler`, environment: this.environment });
    this.#deployed.set(name, service);
    this.#all.push(await service);
    return await service;
  }

  /** @throws Error of the function, or of its end. */
  async invoke(name: FunctionName, event: unknown): Promise<unknown> {
    return await (await this.function(name)).invoke(event);
  }

  /** Fails an event. @returns the code that the function logs. */
  async refusal(name: FunctionName, event: unknown): Promise<unknown> {
    await expect(this.invoke(name, event)).rejects.toThrow('"errorType":"AppError"');
    return linesOf(await this.function(name)).findLast(({ level }) => level === "ERROR")!["code"];
  }

  /**
   * As an event source mapping: takes messages, has them handled, and deletes those that the function does not name.
   *
   * @param timeoutMs what the function is told that it may take. It is not ended then: on a machine with much else to do,
   *   a part of so short a time is too little to put things in order.
   */
  async work(
    name: "pull" | "maintain",
    timeoutMs?: number,
  ): Promise<{ readonly records: readonly SqsRecord[]; readonly failed: readonly string[] }> {
    const url = name === "pull" ? this.queue : this.upkeep;
    const records = await this.aws.receive(url);
    if (records.length === 0) return { records, failed: [] };
    const service = await this.function(name);
    const answer = await service.invoke({ Records: records }, timeoutMs, timeoutMs && 30_000);
    const failed = (answer as BatchResponse).batchItemFailures.map(({ itemIdentifier }) => itemIdentifier);
    for (const record of records) {
      if (!failed.includes(record.messageId)) await this.aws.remove(url, record);
    }
    expect(records.map(({ messageId }) => messageId)).toEqual(expect.arrayContaining(failed));
    return { records, failed };
  }

  /** What is wrong, and what was told. */
  async look(): Promise<WatchResult> {
    return (await this.invoke("watch", {})) as WatchResult;
  }

  /** Messages to people since the last call. */
  async heard(): Promise<string[]> {
    const records = await this.aws.receive(this.topic.queue);
    for (const record of records) await this.aws.remove(this.topic.queue, record);
    return records.map(({ body }) => body);
  }

  /** What the functions printed, without the words of their runtime. */
  lines(): Line[] {
    return this.#all.flatMap(linesOf);
  }
}

type Line = Readonly<Record<string, unknown>>;

function linesOf({ output }: LambdaService): Line[] {
  const lines = output.split("\n").filter((line) => line.startsWith("{"));
  return lines.map((line) => JSON.parse(line) as Line);
}
