import { readdir, utimes, writeFile } from "node:fs/promises";
import { beforeAll, expect, test } from "vitest";
import { parseBackupOrder } from "../../src/queue/orders.ts";
import { createRepository } from "../../src/repository/config.ts";
import { acquireLease } from "../../src/repository/leases.ts";
import { leaseKey, runBeginKey, uuidv7 } from "../../src/repository/names.ts";
import { beginRun } from "../../src/repository/runs.ts";
import { openNewStore } from "../../src/store/open.ts";
import { buildFunctions } from "../support/bundles.ts";
import { Stack } from "../support/function-stack.ts";
import { orderFor } from "../support/order-place.ts";

beforeAll(buildFunctions);

const schedule = (job: string): object => {
  return { job, scheduledAt: new Date(Date.now() - 60_000).toISOString().replace(/\.\d+Z/, "Z") };
};

test("a schedule's event becomes orders, pull backs up what it reaches, watch tells of the rest once", async () => {
  const stack = await Stack.start("    rpo: 26h");
  const repository = await stack.place.repository();
  expect(await stack.look()).toEqual({
    findings: ["main/late/nightly/web", "main/late/nightly/gone"],
    told: { come: 2, gone: 0 },
  });
  expect(await stack.heard()).toEqual([expect.stringContaining("web is late: it has no generation")]);

  const event = schedule("nightly");
  expect(await stack.invoke("dispatch", event)).toEqual({ orders: 2 });
  expect(await stack.invoke("dispatch", event)).toEqual({ orders: 2 });
  expect(await stack.aws.counts(stack.queue)).toEqual({ waiting: 2, taken: 0 });

  const { records, failed } = await stack.work("pull");
  expect(records).toHaveLength(2);
  expect(failed).toEqual([records.find(({ body }) => body.includes("gone"))!.messageId]);
  expect(await stack.place.generations(repository)).toMatchObject([{ source: "web", kind: "full" }]);

  expect(await stack.look()).toEqual({
    findings: ["main/failed/gone", "main/late/nightly/gone", "functions/function/pull/nightly/gone"],
    told: { come: 2, gone: 1 },
  });
  const [words] = await stack.heard();
  expect(words).toContain("The function pull of job nightly, source gone failed");
  expect(words).toContain("Over: main/late/nightly/web");
  expect(await stack.look()).toMatchObject({ told: { come: 0, gone: 0 } });
  expect(await stack.heard()).toEqual([]);

  const metrics = stack
    .lines()
    .filter((line) => "_aws" in line && line["Source"] === "web")
    .at(-1)!;
  expect(metrics).toMatchObject({ Job: "nightly", Findings: 0, BytesRead: 1024 * 1024 });
  expect(metrics["Age"]).toBeLessThan(60);
  expect(
    stack
      .lines()
      .filter((line) => "_aws" in line && !("Source" in line))
      .at(-1),
  ).toMatchObject({
    Findings: 3,
    Late: 1,
  });
});

test("an order that comes twice, or after its run, makes no second generation", async () => {
  const stack = await Stack.start();
  const repository = await stack.place.repository();
  const order = orderFor("web");
  for (let time = 1; time <= 2; time++) {
    await stack.aws.send(stack.queue, JSON.stringify(order), "web");
    expect(await stack.work("pull")).toMatchObject({ failed: [] });
    expect((await stack.look()).findings).toEqual([]);
  }
  expect(await stack.place.generations(repository)).toHaveLength(1);
});

test("events and messages that make no sense fail, and the watch tells", async () => {
  const stack = await Stack.start();
  await stack.place.repository();
  for (const event of [null, [], { job: 1 }, { job: "nightly", evil: true }, { scheduledAt: "yesterday" }]) {
    expect(await stack.refusal("dispatch", event)).toBe("E_EVENT");
  }
  expect(await stack.refusal("dispatch", schedule("misspelt"))).toBe("E_NO_JOB");
  for (const event of [null, {}, { Records: [{}] }, { Records: "x" }]) {
    expect(await stack.refusal("pull", event)).toBe("E_EVENT");
    expect(await stack.refusal("maintain", event)).toBe("E_EVENT");
  }
  await stack.aws.send(stack.queue, "{ broken", "a");
  await stack.aws.send(stack.queue, JSON.stringify(orderFor("unknown")), "b");
  await stack.aws.send(stack.upkeep, '{"job":"misspelt","scheduledAt":"2026-11-24T06:17:00Z"}', "c");
  expect((await stack.work("pull")).failed).toHaveLength(2);
  expect((await stack.work("maintain")).failed).toHaveLength(1);
  expect((await stack.look()).findings.toSorted()).toEqual([
    "functions/function/dispatch",
    "functions/function/dispatch/misspelt",
    "functions/function/maintain",
    "functions/function/pull",
    "functions/function/pull/nightly/unknown",
  ]);
});

test("a fleet: each source's order to the queue that its host listens to; where one is gone the others get theirs", async () => {
  const stack = await Stack.start();
  await stack.place.repository();
  const host7 = await stack.aws.queue("host-7.fifo");
  const host8 = await stack.aws.queue("host-8");
  const ofHosts = (text: string): string =>
    `${text}queues: { host-7: "${host7}", host-8: "${host8}" }`
      .replace("sources: [web, gone]", "sources: [web, gone, far]")
      .replace("sources: {", 'sources: { far: { uri: "nbd://far", queue: host-8 },')
      .replace('" }, gone', '", queue: host-7 }, gone');
  await writeFile(stack.place.path("blockhaul.yaml"), ofHosts(stack.place.text()));
  const sourcesIn = async (url: string): Promise<string[]> => {
    const records = await stack.aws.receive(url);
    return records.map(({ body }) => parseBackupOrder(body).source);
  };
  expect(await stack.invoke("dispatch", schedule("nightly"))).toEqual({ orders: 3 });
  expect(await sourcesIn(stack.queue)).toEqual(["gone"]);
  expect(await sourcesIn(host7)).toEqual(["web"]);
  expect(await sourcesIn(host8)).toEqual(["far"]);

  await stack.aws.removeQueue(host7);
  expect(await stack.refusal("dispatch", schedule("nightly"))).toBe("E_NO_QUEUE");
  expect(await sourcesIn(stack.queue)).toEqual([]); // its group is taken
  expect(await sourcesIn(host8)).toEqual(["far"]);
  expect((await stack.look()).findings).toEqual(["functions/function/dispatch/nightly"]);
  expect((await stack.heard()).at(-1)).toContain("host-7.fifo: SendMessageBatch");
});

test("what only its host can read, pull leaves to an agent there", async () => {
  const stack = await Stack.start();
  await stack.place.repository();
  const local = ["uri: qmp:/run/web.sock", "uri: libvirt:web", "uris: { a: image:/srv/a.qcow2 }"];
  for (const [index, field] of local.entries()) {
    const text = stack.place.text().replace(/sources: \{ web: \{.*/, `sources: { web: { ${field} } }`);
    await writeFile(stack.place.path("blockhaul.yaml"), text.replace("[web, gone]", "[web]"));
    await stack.aws.send(stack.queue, JSON.stringify(orderFor("web")), String(index));
    expect((await stack.work("pull")).failed).toHaveLength(1);
  }
  const errors = stack.lines().filter(({ level }) => level === "ERROR");
  expect(errors.map(({ code }) => code)).toEqual(local.map(() => "E_NOT_FROM_HERE"));
});

test("a queue that is gone, and messages where failures go", async () => {
  const stack = await Stack.start();
  await stack.place.repository();
  await stack.aws.send(stack.letters, "{}");
  await stack.aws.removeQueue(stack.queue);
  expect(await stack.refusal("dispatch", schedule("nightly"))).toBe("E_NO_QUEUE");
  expect((await stack.look()).findings.toSorted()).toEqual([
    "functions/function/dispatch/nightly",
    "queues/letters/letters.fifo",
  ]);
  await stack.aws.removeQueue(stack.letters);
  expect(await stack.look()).toMatchObject({
    findings: ["functions/function/dispatch/nightly", "queues/unreachable/letters.fifo"],
    told: { come: 1, gone: 0 }, // what it held, nobody knows now
  });
});

test("without its secret pull fails, and the watch still sees by names what is late", async () => {
  const stack = await Stack.start("    rpo: 26h");
  const store = await openNewStore(stack.place.location);
  const signal = AbortSignal.timeout(30_000);
  const first = { password: Buffer.from("a secret"), notes: { label: "", host: "test", writer: "test" } };
  await createRepository(store, {}, signal, first);
  store.close();
  const text = stack.place.text("    rpo: 26h").replace('" } }', '", password_env: SECRET } }');
  await writeFile(stack.place.path("blockhaul.yaml"), text);
  await stack.aws.send(stack.queue, JSON.stringify(orderFor("web")), "web");
  expect((await stack.work("pull")).failed).toHaveLength(1);
  expect(stack.lines().filter(({ level }) => level === "ERROR")).toMatchObject([
    { code: "E_PASSWORD_ENV", job: "nightly" },
  ]);
  expect((await stack.look()).findings).toEqual([
    "main/late/nightly/web",
    "main/late/nightly/gone",
    "functions/function/pull/nightly/web",
  ]);
  stack.deploy({ SECRET: "a secret" });
  await stack.aws.send(stack.queue, JSON.stringify(orderFor("web", { job: "nightly" })), "other");
  expect((await stack.work("pull")).failed).toEqual([]);
  expect((await stack.look()).findings).toEqual(["main/late/nightly/gone"]);
});

test("a host that died with a source: seen, waited for, and taken over once its lease has ended", async () => {
  const stack = await Stack.start();
  const repository = await stack.place.repository();
  const signal = AbortSignal.timeout(30_000);
  const run = uuidv7(Date.now() - 3_600_000);
  const lease = { ttlMs: 120_000, heartbeatMs: 1e6, settleMs: 10, isGone: () => false };
  await acquireLease(repository, "web", run, { holder: { host: "dead", pid: 7 }, ...lease }, signal);
  const common = { format: 1, repository: repository.config.repository, source: "web", run } as const;
  const startedAt = new Date(Date.now() - 3_600_000).toISOString();
  await beginRun(
    repository,
    { ...common, purpose: "backup", startedAt, pinned: null, host: "dead", writer: "x" },
    signal,
  );

  expect((await stack.look()).findings).toEqual([]); // it may be alive
  await stack.aws.send(stack.queue, JSON.stringify(orderFor("web")), "web");
  expect((await stack.work("pull")).failed).toHaveLength(1);
  expect(await stack.aws.counts(stack.queue)).toEqual({ waiting: 0, taken: 1 }); // hidden for a while
  expect((await stack.look()).findings).toEqual(["functions/function/pull/nightly/web"]);

  const long = new Date(Date.now() - 1_800_000);
  await utimes(stack.place.path(`repository/${leaseKey("web", run)}`), long, long);
  await utimes(stack.place.path(`repository/${runBeginKey("web", run)}`), long, long);
  expect((await stack.look()).findings).toEqual([
    "main/lease/web",
    "main/died/web",
    "functions/function/pull/nightly/web",
  ]);
  await stack.aws.send(stack.queue, JSON.stringify(orderFor("web")), "other");
  expect((await stack.work("pull")).failed).toEqual([]);
  expect((await stack.look()).findings).toEqual([]);
  expect(await readdir(stack.place.path("repository/leases/web")).catch(() => [])).toEqual([]);
});
