import { spawn } from "node:child_process";
import { once } from "node:events";
import { access, readdir, utimes, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { join, resolve } from "node:path";
import { beforeAll, expect, onTestFinished, test, vi } from "vitest";
import { createRepository } from "../../src/repository/config.ts";
import { packKey, runBeginKey } from "../../src/repository/names.ts";
import { openNewStore } from "../../src/store/open.ts";
import { Notes } from "../../src/watch/notes.ts";
import type { SqsRecord } from "../support/aws-stand-in.ts";
import { buildFunctions } from "../support/bundles.ts";
import { Stack } from "../support/function-stack.ts";
import { orderFor } from "../support/order-place.ts";
import { startVersitygw } from "../support/versitygw.ts";

beforeAll(buildFunctions);

const BIN = resolve(import.meta.dirname, "../../bin/blockhaul.js");
const SOON = { timeout: 20_000, interval: 20 };
const signal = AbortSignal.timeout(120_000);

/** The program as a host's agent; ends with the test. */
class AgentProcess {
  said = "";
  readonly #child;

  constructor(environment: Readonly<Record<string, string>>) {
    const env = { ...process.env, ...environment };
    this.#child = spawn(process.execPath, [BIN, "agent"], { env, stdio: ["ignore", "ignore", "pipe"] });
    this.#child.stderr.setEncoding("utf8").on("data", (text: string) => (this.said += text));
    onTestFinished(() => void this.#child.kill("SIGKILL"));
  }

  async hears(words: string): Promise<void> {
    await vi.waitFor(() => expect(this.said).toContain(words), SOON);
  }

  async stop(): Promise<void> {
    this.#child.kill("SIGTERM");
    expect(await once(this.#child, "exit")).toEqual([0, null]);
  }
}

test("what an agent cannot do shows, though no run was begun; and that it has no queue; until it is over", async () => {
  const stack = await Stack.start();
  await stack.place.repository();
  const text = stack.place.text().replace('" } }', '", password_env: SECRET } }');
  await writeFile(stack.place.path("blockhaul.yaml"), text);
  await stack.aws.send(stack.queue, "{ broken", "a");
  await stack.aws.send(stack.queue, JSON.stringify(orderFor("unknown")), "b");
  await stack.aws.send(stack.queue, JSON.stringify(orderFor("web")), "c");
  const agent = new AgentProcess(stack.environment);
  await agent.hears("it is no JSON");
  await agent.hears("Job nightly has no source unknown");
  await agent.hears("SECRET");
  await stack.aws.removeQueue(stack.queue);
  await agent.hears("there is no such queue");
  await agent.stop();
  await writeFile(stack.place.path("blockhaul.yaml"), stack.place.text());
  const { findings } = await stack.look();
  const expected = [`agents/agent/${hostname()}`, "agents/agent/nightly/unknown", "agents/agent/nightly/web"];
  expect(findings.toSorted()).toEqual(expected.toSorted());
  const [words] = await stack.heard();
  expect(words).toMatch(/The agent on \S+ of job nightly, source web failed at \S+: .*SECRET/);
  expect(words).toMatch(/The agent on \S+ failed at \S+: .*there is no such queue/);

  await stack.aws.queue("work.fifo", stack.letters);
  await stack.aws.send(stack.queue, JSON.stringify(orderFor("web")), "c");
  const next = new AgentProcess(stack.environment);
  await next.hears("web: generation");
  await next.stop();
  expect((await stack.look()).findings).toEqual(["agents/agent/nightly/unknown"]);
});

/** The next message of the queue, hidden for a second only. */
async function nextOf({ aws, queue }: Stack): Promise<readonly SqsRecord[]> {
  return await vi.waitFor(async () => {
    const records = await aws.receive(queue, 1);
    expect(records).toHaveLength(1);
    return records;
  }, SOON);
}

test("memory used up, then time used up: no generation, its order stays, and comes to where failures go", async () => {
  const stack = await Stack.start("    rpo: 26h\n    limit_upload: 64KiB");
  const repository = await stack.place.repository();
  const leases = stack.place.path("repository/leases/web");
  const then = new Date(Date.now() - 3_600_000);
  await stack.aws.send(stack.queue, JSON.stringify(orderFor("web")), "web");
  let died: readonly string[] = [];
  for (const end of ["exhaust", "stall"] as const) {
    const Records = await nextOf(stack);
    const pull = await stack.function("pull");
    const outcome = pull.invoke({ Records }, 8000).catch((error: unknown) => error);
    await vi.waitFor(async () => {
      const [run] = (await readdir(leases)).filter((one) => !died.includes(one));
      await access(stack.place.path(`repository/${runBeginKey("web", run!)}`));
    }, SOON);
    pull[end]();
    expect(String(await outcome)).toMatch(end === "exhaust" ? /SIGKILL/ : /timed out/);
    died = await readdir(leases);
    for (const run of died) await utimes(join(leases, run), then, then);
  }
  expect(await stack.place.generations(repository)).toEqual([]);
  await vi.waitFor(async () => {
    expect(await stack.aws.receive(stack.queue, 1)).toEqual([]);
    expect(await stack.aws.counts(stack.letters)).toEqual({ waiting: 1, taken: 0 });
  }, SOON);
  const notes = await Notes.open(stack.place.path("notes")); // as they are an hour later
  onTestFinished(() => notes.close());
  const [note] = await notes.read(signal);
  expect(note).toMatchObject({ by: "pull", state: "running" });
  await notes.write({ ...note!, at: then.toISOString(), until: then.toISOString() }, signal);
  expect((await stack.look()).findings).toEqual([
    "main/lease/web",
    "main/died/web",
    "main/late/nightly/web",
    "main/late/nightly/gone",
    "functions/function/pull/nightly/web",
    "queues/letters/letters.fifo",
  ]);
});

test("with too little memory to begin at all: the source is late, and its order where failures go", async () => {
  const stack = await Stack.start("    rpo: 26h");
  await stack.place.repository();
  await stack.aws.send(stack.queue, JSON.stringify(orderFor("web")), "web");
  stack.deploy({ NODE_OPTIONS: "--max-old-space-size=10" });
  for (let time = 1; time <= 2; time++) {
    const Records = await nextOf(stack);
    await expect(stack.invoke("pull", { Records })).rejects.toThrow("Runtime exited with SIGABRT");
  }
  await vi.waitFor(async () => {
    expect(await stack.aws.receive(stack.queue, 1)).toEqual([]);
    expect(await stack.aws.counts(stack.letters)).toEqual({ waiting: 1, taken: 0 });
  }, SOON);
  stack.deploy({ NODE_OPTIONS: "" });
  expect((await stack.look()).findings).toEqual([
    "main/late/nightly/web",
    "main/late/nightly/gone",
    "queues/letters/letters.fifo",
  ]);
});

test("uploads that were begun and never ended show, until the next backup ends them", async () => {
  const server = await startVersitygw();
  onTestFinished(() => server.stop());
  await server.createBucket("backups");
  const stack = await Stack.start();
  const keys = { AWS_ACCESS_KEY_ID: server.accessKey, AWS_SECRET_ACCESS_KEY: server.secretKey };
  for (const [name, value] of Object.entries(keys)) vi.stubEnv(name, value); // also for this process
  stack.deploy(keys);
  const location = `s3://backups/vms?endpoint=${server.endpoint}&region=${server.region}`;
  await writeFile(stack.place.path("blockhaul.yaml"), stack.place.text("", location));
  const store = await openNewStore(location);
  onTestFinished(() => store.close());
  await createRepository(store, {}, signal);
  for (const id of ["a", "b"]) {
    await store.beginUpload(packKey(`${id}0000000-0000-4000-8000-000000000000`), signal);
  }
  const begun = join(server.data, "backups/.sgwtmp/multipart");
  const begunDaysAgo = async (days: number): Promise<void> => {
    const then = new Date(Date.now() - days * 24 * 3_600_000);
    for (const name of await readdir(begun, { recursive: true })) await utimes(join(begun, name), then, then);
  };
  await begunDaysAgo(1);
  expect((await stack.look()).findings).toEqual([]); // a run may be at it
  await begunDaysAgo(3);
  expect((await stack.look()).findings).toEqual(["main/uploads/"]);
  expect((await stack.heard()).at(-1)).toContain("2 uploads to main were begun and never ended");
  await stack.aws.send(stack.queue, JSON.stringify(orderFor("web")), "web");
  expect((await stack.work("pull")).failed).toEqual([]);
  expect((await stack.look()).findings).toEqual([]);
});
