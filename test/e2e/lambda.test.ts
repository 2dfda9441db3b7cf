import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { deflateRawSync } from "node:zlib";
import { beforeAll, expect, onTestFinished, test, vi } from "vitest";
import { findingsOfNotes } from "../../src/watch/look.ts";
import { Notes } from "../../src/watch/notes.ts";
import { AwsStandIn } from "../support/aws-stand-in.ts";
import { builtFunctions, buildFunctions } from "../support/bundles.ts";
import { runCli, runJson } from "../support/cli.ts";
import { fsck, sequence } from "../support/guest/disk.ts";
import { bootGuest } from "../support/guest/guest.ts";
import { LambdaService } from "../support/lambda-service.ts";
import { startMinio } from "../support/minio.ts";
import { orderFor, OrderPlace } from "../support/order-place.ts";

const ROOT = resolve(import.meta.dirname, "../..");
const BIN = join(ROOT, "bin/blockhaul.js");

beforeAll(buildFunctions);

test("the bundles: four handlers and the worker, under 10 MB as a zip", async () => {
  const files = await readdir(builtFunctions());
  expect(files).toEqual(
    expect.arrayContaining(["dispatch.mjs", "pull.mjs", "maintain.mjs", "watch.mjs", "worker.mjs"]),
  );
  let zipped = 0;
  for (const file of files)
    zipped += deflateRawSync(await readFile(join(builtFunctions(), file))).length + 200;
  expect(zipped).toBeLessThan(10_000_000);
});

interface Deployed {
  readonly aws: AwsStandIn;
  readonly place: OrderPlace;
  readonly agents: string;
  readonly pulls: string;
  readonly environment: Readonly<Record<string, string>>;
  readonly location: string;
  function(handler: string): Promise<LambdaService>;
}

/** A bucket of MinIO with a repository, queues, a source, and what the functions and agents have in their environment. */
async function deployed(more: string, size?: number): Promise<Deployed> {
  const aws = await AwsStandIn.start();
  const minio = await startMinio();
  onTestFinished(() => minio.stop());
  const bucket = await minio.createBucket("backups");
  const place = await OrderPlace.make(size);
  const options = `?endpoint=${minio.endpoint}`;
  const location = `s3://${bucket}/vms${options}`;
  const keys = { AWS_ACCESS_KEY_ID: minio.accessKey, AWS_SECRET_ACCESS_KEY: minio.secretKey };
  for (const [name, value] of Object.entries(keys)) vi.stubEnv(name, value); // also for this process
  const agents = await aws.queue("agents.fifo");
  const pulls = await aws.queue("pulls.fifo");
  const environment = {
    ...aws.environment,
    ...keys,
    BLOCKHAUL_CONFIG: place.path("blockhaul.yaml"),
    BLOCKHAUL_QUEUE_URL: agents,
    BLOCKHAUL_MAINTAIN_QUEUE_URL: await aws.queue("upkeep.fifo"),
    BLOCKHAUL_NOTES: `s3://${bucket}/notes${options}`,
    BLOCKHAUL_CACHE_DIR: place.path("cache"),
  };
  await writeFile(place.path("blockhaul.yaml"), place.text(more, location));
  expect(await runCli(["init", "-r", location], { env: keys })).toMatchObject({ code: 0 });
  return {
    aws,
    place,
    agents,
    pulls,
    environment,
    location,
    function: (handler) => {
      const own = handler.startsWith("pull") ? { ...environment, BLOCKHAUL_QUEUE_URL: pulls } : environment;
      return LambdaService.start({ handler, environment: own });
    },
  };
}

const SOON = { timeout: 40_000, interval: 50 };

test("schedule, dispatch, queue, agent, backup, watch: the program and the functions as they are deployed", async () => {
  const { aws, place, agents, environment, location, function: start } = await deployed("    rpo: 26h");
  const watch = await start("watch.handler");
  expect(await watch.invoke({})).toMatchObject({
    findings: ["main/late/nightly/web", "main/late/nightly/gone"],
  });
  const dispatch = await start("dispatch.handler");
  const event = { job: "nightly", scheduledAt: new Date(Date.now() - 1000).toISOString() };
  expect(await dispatch.invoke(event)).toEqual({ orders: 2 });

  const metricsFile = place.path("blockhaul.prom");
  const args = ["agent", "--metrics", "127.0.0.1:0", "--metrics-file", metricsFile, "--drain", "30s"];
  const agent = spawn(process.execPath, [BIN, ...args], {
    env: { ...process.env, ...environment },
    stdio: ["ignore", "ignore", "pipe"],
  });
  onTestFinished(() => void agent.kill("SIGKILL"));
  let said = "";
  agent.stderr.setEncoding("utf8").on("data", (text: string) => (said += text));
  await vi.waitFor(() => expect(said).toMatch(/web: generation \S+ is stored/), SOON);
  await vi.waitFor(() => expect(said).toContain("error: "), SOON); // gone
  const [, url] = /Metrics are at (\S+)/.exec(said)!;
  const metrics = await (await fetch(url!)).text();
  expect(metrics).toContain('blockhaul_backup_last_result{job="nightly",source="web"} 1');
  expect(metrics).toContain('blockhaul_backup_requests{job="nightly",source="web",operation="PutObject"}');
  expect(metrics).toMatch(/blockhaul_backup_request_cost\{job="nightly",source="web"\} 0\.000\d+/);
  await vi.waitFor(
    async () => expect(await readFile(metricsFile, "utf8")).toContain('result="failed"} 1'),
    SOON,
  );
  agent.kill("SIGTERM");
  expect(await once(agent, "exit")).toEqual([0, null]);
  expect(await aws.counts(agents)).toEqual({ waiting: 0, taken: 1 });

  expect(await watch.invoke({})).toMatchObject({
    findings: ["main/failed/gone", "main/late/nightly/gone", "agents/agent/nightly/gone"],
  });
  const keys = { env: { ...environment } };
  const target = place.path("restored.raw");
  expect(await runCli(["restore", "-r", location, "web", "--to", target], keys)).toMatchObject({ code: 0 });
  expect((await readFile(target)).equals(await place.bytes())).toBe(true);
});

test(
  "the same with a VM, by its host's own queue: the guest stands still for each backup, and the second is incremental",
  { timeout: 180_000 },
  async () => {
    const { aws, place, environment, location, function: start } = await deployed("");
    const own = await aws.queue("host-7.fifo");
    const guest = await bootGuest({ writer: true });
    await writeFile(
      place.path("blockhaul.yaml"),
      `repositories: { main: { url: "${location}" } }
sources: { vm: { uri: "qmp:${guest.qmp}", guest_agent: "${guest.agent}", freeze: require, scratch: "${guest.folder}", queue: host-7 } }
queues: { host-7: "${own}" }
jobs: { nightly: { repository: main, sources: [vm], rpo: 26h } }
`,
    );
    const watch = await start("watch.handler");
    expect(await watch.invoke({})).toMatchObject({ findings: ["main/late/nightly/vm"] });
    const agent = spawn(process.execPath, [BIN, "agent", "--queue", "host-7", "--drain", "30s"], {
      env: { ...process.env, ...environment },
      stdio: ["ignore", "ignore", "pipe"],
    });
    onTestFinished(() => void agent.kill("SIGKILL"));
    let said = "";
    agent.stderr.setEncoding("utf8").on("data", (text: string) => (said += text));
    const dispatch = await start("dispatch.handler");
    const keys = { env: { ...environment } };
    for (const kind of ["full", "incremental"]) {
      said = "";
      expect(await dispatch.invoke({ scheduledAt: new Date().toISOString() })).toEqual({ orders: 1 });
      await vi.waitFor(() => expect(said).toMatch(/vm: generation \S+ is stored/), SOON);
      const { generations } = await runJson<{ generations: object[] }>(["list", "-r", location], keys);
      expect(generations.at(-1)).toMatchObject({ source: "vm", kind, consistency: "filesystem" });
      const restored = place.path(`${kind}.raw`);
      expect(await runCli(["restore", "-r", location, "vm", "--to", restored], keys)).toMatchObject({
        code: 0,
      });
      expect(await fsck(restored)).toMatchObject({ code: 0 });
      const written = await sequence(restored);
      await guest.console.waitFor(new RegExp(`^W ${written + 3}\\r?$`, "m"), 60_000);
    }
    expect(await sequence(place.path("incremental.raw"))).toBeGreaterThan(
      await sequence(place.path("full.raw")),
    );
    expect(await watch.invoke({})).toMatchObject({ findings: [] });
    agent.kill("SIGTERM");
    expect(await once(agent, "exit")).toEqual([0, null]);
  },
);

test("pull and maintain run as they are deployed; one that is ended by force leaves word, and no generation", async () => {
  const {
    aws,
    place,
    pulls,
    environment,
    location,
    function: start,
  } = await deployed("    prune: {}\n    verify: { percent: 100 }\n    limit_upload: 1MiB", 2 * 1024 * 1024);
  const keys = { env: environment };
  const notes = await Notes.open(environment["BLOCKHAUL_NOTES"]!);
  onTestFinished(() => notes.close());
  const signal = AbortSignal.timeout(60_000);
  await aws.send(pulls, JSON.stringify(orderFor("web")), "web");
  const first = { Records: await aws.receive(pulls) };
  const pull = await start("pull.handler");
  expect(await pull.invoke(first)).toEqual({ batchItemFailures: [] });
  expect(await runJson(["list", "-r", location], keys)).toMatchObject({ generations: [{ source: "web" }] });

  await writeFile(place.image, randomBytes(2 * 1024 * 1024));
  const order = orderFor("web", { scheduledAt: new Date(Date.now() + 1000).toISOString() });
  await aws.send(pulls, JSON.stringify(order), "again");
  const event = { Records: await aws.receive(pulls) };
  const dying = await start("pull.handler");
  const killed = dying.invoke(event).catch((error: unknown) => error);
  await vi.waitFor(async () => expect(await notes.read(signal)).toMatchObject([{ state: "running" }]), SOON);
  dying.exhaust();
  expect(await killed).toMatchObject({ message: expect.stringContaining("SIGKILL") as string });
  const later = new Date(Date.now() + 3_600_000);
  expect(
    findingsOfNotes(await notes.read(signal), { nightly: { sources: ["web"] } }, [], later),
  ).toMatchObject([
    { subject: "pull/nightly/web", message: expect.stringContaining("ran out of time or memory") as string },
  ]);
  const after = await runJson<{ generations: unknown[] }>(["list", "-r", location], keys);
  expect(after.generations).toHaveLength(1);

  const maintain = await start("maintain.handler");
  const body = '{"job":"nightly","scheduledAt":"2026-11-24T06:17:00Z"}';
  const record = { messageId: "m", receiptHandle: "r", body, attributes: { ApproximateReceiveCount: "1" } };
  expect(await maintain.invoke({ Records: [record] })).toEqual({ batchItemFailures: [] });
});
