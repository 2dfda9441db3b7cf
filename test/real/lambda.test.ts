import { readdir, utimes, writeFile } from "node:fs/promises";
import { expect, test, vi } from "vitest";
import { handler as dispatch } from "../../src/lambda/dispatch.ts";
import { handler as pull } from "../../src/lambda/pull.ts";
import { handler as maintain } from "../../src/lambda/maintain.ts";
import { createRepository } from "../../src/repository/config.ts";
import { acquireLease } from "../../src/repository/leases.ts";
import { leaseKey, runBeginKey, uuidv7 } from "../../src/repository/names.ts";
import { beginRun } from "../../src/repository/runs.ts";
import { openNewStore } from "../../src/store/open.ts";
import { stack } from "../support/function-stack.ts";
import { contextOf, mapQueue } from "../support/functions.ts";
import { orderFor } from "../support/order-place.ts";

const schedule = (job: string): object => {
  return { job, scheduledAt: new Date(Date.now() - 60_000).toISOString().replace(/\.\d+Z/, "Z") };
};

test("a schedule's event becomes orders, pull backs up what it reaches, watch tells of the rest once", async () => {
  const { aws, place, queue, look, heard, lines } = await stack("    rpo: 26h");
  const repository = await place.repository();
  expect(await look()).toEqual({
    findings: ["main/late/nightly/web", "main/late/nightly/gone"],
    told: { come: 2, gone: 0 },
  });
  expect(await heard()).toEqual([expect.stringContaining("web is late: it has no generation")]);

  const event = schedule("nightly");
  expect(await dispatch(event, contextOf("dispatch"))).toEqual({ orders: 2 });
  expect(await dispatch(event, contextOf("dispatch"))).toEqual({ orders: 2 });
  expect(await aws.counts(queue)).toEqual({ waiting: 2, taken: 0 });

  const { records, failed } = await mapQueue(aws, queue, pull, contextOf("pull"));
  expect(records).toHaveLength(2);
  expect(failed).toEqual([records.find(({ body }) => body.includes("gone"))!.messageId]);
  expect(await place.generations(repository)).toMatchObject([{ source: "web", kind: "full" }]);

  expect(await look()).toEqual({
    findings: ["main/failed/gone", "main/late/nightly/gone", "functions/function/pull/nightly/gone"],
    told: { come: 2, gone: 1 },
  });
  const [words] = await heard();
  expect(words).toContain("The function pull of job nightly, source gone failed");
  expect(words).toContain("Over: main/late/nightly/web");
  expect(await look()).toMatchObject({ told: { come: 0, gone: 0 } });
  expect(await heard()).toEqual([]);

  const metrics = lines.filter((line) => "_aws" in line && line["Source"] === "web").at(-1)!;
  expect(metrics).toMatchObject({ Job: "nightly", Findings: 0, BytesRead: 1024 * 1024 });
  expect(metrics["Age"]).toBeLessThan(60);
  expect(lines.filter((line) => "_aws" in line && !("Source" in line)).at(-1)).toMatchObject({
    Findings: 3,
    Late: 1,
  });
});

test("an order that comes twice, or after its run, makes no second generation", async () => {
  const { aws, place, queue } = await stack();
  const repository = await place.repository();
  const order = orderFor("web");
  for (let time = 1; time <= 2; time++) {
    await aws.send(queue, JSON.stringify(order), "web");
    expect(await mapQueue(aws, queue, pull, contextOf("pull"))).toMatchObject({ failed: [] });
  }
  expect(await place.generations(repository)).toHaveLength(1);
});

test("events and messages that make no sense fail, and the watch tells", async () => {
  const { aws, place, queue, upkeep, look } = await stack();
  await place.repository();
  for (const event of [null, [], { job: 1 }, { job: "nightly", evil: true }, { scheduledAt: "yesterday" }]) {
    await expect(dispatch(event, contextOf("dispatch"))).rejects.toMatchObject({ code: "E_EVENT" });
  }
  await expect(dispatch(schedule("misspelt"), contextOf("dispatch"))).rejects.toMatchObject({
    code: "E_NO_JOB",
  });
  for (const event of [null, {}, { Records: [{}] }, { Records: "x" }]) {
    await expect(pull(event, contextOf("pull"))).rejects.toMatchObject({ code: "E_EVENT" });
    await expect(maintain(event, contextOf("maintain"))).rejects.toMatchObject({ code: "E_EVENT" });
  }
  await aws.send(queue, "{ broken", "a");
  await aws.send(queue, JSON.stringify(orderFor("unknown")), "b");
  await aws.send(upkeep, '{"job":"misspelt","scheduledAt":"2026-11-24T06:17:00Z"}', "c");
  expect((await mapQueue(aws, queue, pull, contextOf("pull"))).failed).toHaveLength(2);
  expect((await mapQueue(aws, upkeep, maintain, contextOf("maintain"))).failed).toHaveLength(1);
  expect((await look()).findings.toSorted()).toEqual([
    "functions/function/dispatch",
    "functions/function/dispatch/misspelt",
    "functions/function/maintain",
    "functions/function/pull",
    "functions/function/pull/nightly/unknown",
  ]);
});

test("a queue that is gone, and messages where failures go", async () => {
  const { aws, place, queue, look } = await stack();
  await place.repository();
  await aws.send(process.env["BLOCKHAUL_DEAD_LETTER_URLS"]!, "{}");
  await aws.removeQueue(queue);
  await expect(dispatch(schedule("nightly"), contextOf("dispatch"))).rejects.toMatchObject({
    code: "E_NO_QUEUE",
  });
  expect((await look()).findings.toSorted()).toEqual([
    "functions/function/dispatch/nightly",
    "queues/letters/letters.fifo",
  ]);
});

test("without its secret pull fails, and the watch still sees by names what is late", async () => {
  const { aws, place, queue, look, lines } = await stack("    rpo: 26h");
  const store = await openNewStore(place.location);
  const signal = AbortSignal.timeout(30_000);
  const first = { password: Buffer.from("a secret"), notes: { label: "", host: "test", writer: "test" } };
  await createRepository(store, {}, signal, first);
  store.close();
  const text = place.text("    rpo: 26h").replace('" } }', '", password_env: SECRET } }');
  await writeFile(place.path("blockhaul.yaml"), text);
  await aws.send(queue, JSON.stringify(orderFor("web")), "web");
  expect((await mapQueue(aws, queue, pull, contextOf("pull"))).failed).toHaveLength(1);
  expect(lines.filter(({ level }) => level === "ERROR")).toMatchObject([
    { code: "E_PASSWORD_ENV", job: "nightly" },
  ]);
  expect((await look()).findings).toEqual([
    "main/late/nightly/web",
    "main/late/nightly/gone",
    "functions/function/pull/nightly/web",
  ]);
  vi.stubEnv("SECRET", "a secret");
  await aws.send(queue, JSON.stringify(orderFor("web", { job: "nightly" })), "other");
  expect((await mapQueue(aws, queue, pull, contextOf("pull"))).failed).toEqual([]);
  expect((await look()).findings).toEqual(["main/late/nightly/gone"]);
});

test("a host that died with a source: seen, waited for, and taken over once its lease has ended", async () => {
  const { aws, place, queue, look } = await stack();
  const repository = await place.repository();
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

  expect((await look()).findings).toEqual([]); // it may be alive
  await aws.send(queue, JSON.stringify(orderFor("web")), "web");
  expect((await mapQueue(aws, queue, pull, contextOf("pull"))).failed).toHaveLength(1);
  expect(await aws.counts(queue)).toEqual({ waiting: 0, taken: 1 }); // hidden for a while
  expect((await look()).findings).toEqual(["functions/function/pull/nightly/web"]);

  const long = new Date(Date.now() - 1_800_000);
  await utimes(place.path(`repository/${leaseKey("web", run)}`), long, long);
  await utimes(place.path(`repository/${runBeginKey("web", run)}`), long, long);
  expect((await look()).findings).toEqual([
    "main/lease/web",
    "main/died/web",
    "functions/function/pull/nightly/web",
  ]);
  await aws.send(queue, JSON.stringify(orderFor("web")), "other");
  expect((await mapQueue(aws, queue, pull, contextOf("pull"))).failed).toEqual([]);
  expect((await look()).findings).toEqual([]);
  expect(await readdir(place.path("repository/leases/web")).catch(() => [])).toEqual([]);
});
