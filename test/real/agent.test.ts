import { expect, test, vi } from "vitest";
import { Agent, type AgentListener, type AgentOptions } from "../../src/agent/agent.ts";
import { fulfil, waitBeforeNext } from "../../src/agent/fulfil.ts";
import type { BackupOrder } from "../../src/queue/orders.ts";
import { WorkQueue } from "../../src/queue/queue.ts";
import { acquireLease } from "../../src/repository/leases.ts";
import { uuidv7 } from "../../src/repository/names.ts";
import { AwsStandIn } from "../support/aws-stand-in.ts";
import { orderFor, OrderPlace } from "../support/order-place.ts";

const SOON = { timeout: 20_000, interval: 20 };

/** An agent at work, and what it says. */
class Working {
  /** "began web", "ended web done", "queue E_NO_QUEUE", "warn: …". */
  readonly words: string[] = [];
  readonly #stop = new AbortController();
  readonly #over: Promise<void>;

  constructor(url: string, place: OrderPlace, more: string, options: Partial<AgentOptions> = {}) {
    const queue = new WorkQueue(url, process.env);
    const agent = new Agent({
      queue,
      file: place.file(more),
      runner: place.runner(),
      concurrency: 1,
      drainMs: 30_000,
      listener: this.#listener(),
      ...options,
    });
    this.#over = agent.run(this.#stop.signal).finally(() => queue.close());
    this.#over.catch(() => undefined);
  }

  async said(word: string | RegExp): Promise<void> {
    await vi.waitFor(() => expect(this.words.filter((one) => one.match(word))).not.toEqual([]), SOON);
  }

  /** As SIGTERM does. */
  async stop(): Promise<void> {
    this.#stop.abort(new Error("stop"));
    await this.#over;
  }

  get over(): Promise<void> {
    return this.#over;
  }

  #listener(): AgentListener {
    const say = (word: string): void => void this.words.push(word);
    return {
      ready: () => say("ready"),
      began: ({ source }) => say(`began ${source}`),
      ended: ({ source }, result) => {
        const code = "error" in result ? (result.error as { code?: string }).code : "";
        say(`ended ${source} ${result.kind} ${code}`.trim());
      },
      refused: ({ id }, error) => say(`refused ${id}: ${(error as Error).message}`),
      queue: (trouble) => say(`queue ${(trouble as { code?: string } | undefined)?.code ?? "answers"}`),
      warn: (message) => say(`warn: ${message}`),
      info: () => undefined,
      backup: () => undefined,
      verify: () => undefined,
    };
  }
}

const send = (aws: AwsStandIn, url: string, order: BackupOrder): Promise<void> =>
  aws.send(url, JSON.stringify(order), order.source);

const counted = (aws: AwsStandIn, url: string, counts: object): Promise<void> =>
  vi.waitFor(async () => expect(await aws.counts(url)).toEqual(counts), SOON);

test("does what is asked for once, however often it is asked", async () => {
  const aws = await AwsStandIn.start();
  const url = await aws.queue("work");
  const place = await OrderPlace.make();
  const repository = await place.repository();
  const order = orderFor("web");
  await send(aws, url, order);
  const agent = new Working(url, place, "");
  await agent.said("ended web done");
  await send(aws, url, order);
  await agent.said("ended web already");
  await counted(aws, url, { waiting: 0, taken: 0 });
  await agent.stop();
  expect(await place.generations(repository)).toHaveLength(1);
  expect(agent.words).toEqual(["ready", "began web", "ended web done", "began web", "ended web already"]);
});

test("what cannot be done stays in the queue, for later and for where failures go", async () => {
  const aws = await AwsStandIn.start();
  const url = await aws.queue("work");
  const place = await OrderPlace.make();
  await place.repository();
  await aws.send(url, "{ broken");
  await send(aws, url, orderFor("unknown"));
  await send(aws, url, orderFor("web", { job: "unknown" }));
  await send(aws, url, orderFor("gone"));
  const agent = new Working(url, place, "");
  await agent.said("refused .*: The message asks for nothing that can be done: it is no JSON");
  await agent.said("ended unknown failed E_NOT_IN_JOB");
  await agent.said("ended web failed E_NO_JOB");
  await agent.said("ended gone failed E_NBD_CONNECT");
  await counted(aws, url, { waiting: 0, taken: 4 });
  await agent.stop();
});

test("what is tried in vain again and again is tried ever later", () => {
  expect([1, 2, 3, 4, 5, 6, 100].map(waitBeforeNext)).toEqual([60, 120, 240, 480, 960, 1800, 1800]);
});

test("keeps a message from others as long as its run goes on", async () => {
  const aws = await AwsStandIn.start();
  const url = await aws.queue("work");
  const place = await OrderPlace.make();
  await place.repository();
  await send(aws, url, orderFor("web"));
  const times = { takenSeconds: 2, heldSeconds: 2 };
  const slow = "    hooks: { before: 'sleep 4' }";
  const agents = [new Working(url, place, slow, times), new Working(url, place, slow, times)];
  await vi.waitFor(() => {
    expect(agents.flatMap(({ words }) => words)).toContain("ended web done");
  }, SOON);
  await counted(aws, url, { waiting: 0, taken: 0 });
  await Promise.all(agents.map((agent) => agent.stop()));
  expect(agents.flatMap(({ words }) => words).sort()).toEqual([
    "began web",
    "ended web done",
    "ready",
    "ready",
  ]);
});

test("told to stop, it ends what it began, and begins nothing more", async () => {
  const aws = await AwsStandIn.start();
  const url = await aws.queue("work");
  const place = await OrderPlace.make();
  await place.repository();
  await send(aws, url, orderFor("web"));
  const agent = new Working(url, place, "    hooks: { before: 'sleep 1' }");
  await agent.said("began web");
  await send(aws, url, orderFor("gone"));
  await agent.stop();
  expect(agent.words).toEqual(["ready", "began web", "ended web done"]);
  await counted(aws, url, { waiting: 1, taken: 0 });
});

test("with no time to end it, a run is undone, and the next agent finds its message at once", async () => {
  const aws = await AwsStandIn.start();
  const url = await aws.queue("work.fifo");
  const place = await OrderPlace.make();
  const repository = await place.repository();
  await send(aws, url, orderFor("web"));
  const agent = new Working(url, place, "    hooks: { before: 'sleep 100' }", { drainMs: 50 });
  await agent.said("began web");
  await agent.stop();
  expect(agent.words.at(-1)).toBe("ended web failed E_DRAINED");
  await counted(aws, url, { waiting: 1, taken: 0 });
  const next = new Working(url, place, "");
  await next.said("ended web done");
  await next.stop();
  expect(await place.generations(repository)).toHaveLength(1);
});

test("a queue that is gone is waited for; one that never was is told at once", async () => {
  const aws = await AwsStandIn.start();
  const url = await aws.queue("work");
  const place = await OrderPlace.make();
  await place.repository();
  await expect(new Working(`${url}-never`, place, "").over).rejects.toMatchObject({ code: "E_NO_QUEUE" });
  await send(aws, url, orderFor("web"));
  const agent = new Working(url, place, "    hooks: { before: 'sleep 0.5' }");
  await agent.said("began web");
  await aws.removeQueue(url);
  await agent.said("queue E_NO_QUEUE");
  await aws.queue("work");
  await send(aws, url, orderFor("web"));
  await agent.said("queue answers");
  await agent.said("ended web already");
  await agent.stop();
  expect(agent.words.filter((word) => word.startsWith("queue"))).toEqual([
    "queue E_NO_QUEUE",
    "queue answers",
  ]);
});

test("with a queue that does not answer yet it is up all the same, and says what it waits for", async () => {
  await AwsStandIn.start();
  const place = await OrderPlace.make();
  vi.stubEnv("AWS_ENDPOINT_URL_SQS", "http://127.0.0.1:9"); // nobody is there
  const agent = new Working("http://127.0.0.1:9/1/work", place, "");
  await agent.said("queue E_QUEUE");
  await agent.stop();
  expect(agent.words).toEqual(["ready", "queue E_QUEUE"]);
});

test("the source of a host that died is taken over once its lease has ended", async () => {
  const place = await OrderPlace.make();
  const repository = await place.repository();
  const signal = new AbortController().signal;
  const lease = { ttlMs: 1500, heartbeatMs: 1e6, settleMs: 10, isGone: () => false };
  const dead = { holder: { host: "dead", pid: 7 }, ...lease };
  await acquireLease(repository, "web", uuidv7(Date.now()), dead, signal);
  const observer = { warn: vi.fn(), info: vi.fn(), backup: vi.fn(), verify: vi.fn() };
  const once = (): ReturnType<typeof fulfil> =>
    fulfil(orderFor("web"), place.file(), place.runner(), { signal, observer });
  expect(await once()).toMatchObject({ kind: "locked", error: { code: "E_LOCKED" } });
  await vi.waitFor(async () => expect(await once()).toMatchObject({ kind: "done" }), SOON);
});
