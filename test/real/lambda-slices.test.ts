import { randomBytes } from "node:crypto";
import { cp, open, readdir, utimes } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { deadlineError } from "../../src/lambda/deadline.ts";
import { upkeepSlice } from "../../src/lambda/upkeep-slice.ts";
import { parseJobFile } from "../../src/jobs/job-file.ts";
import { jobsOf, withJob } from "../../src/jobs/job.ts";
import { runSource } from "../../src/jobs/run-source.ts";
import type { JobFile } from "../../src/jobs/schema.ts";
import { parseBackupOrder, type UpkeepOrder } from "../../src/queue/orders.ts";
import { readLedger } from "../../src/repository/checked.ts";
import { loadCondemned } from "../../src/repository/condemned.ts";
import { openRepository, type Repository } from "../../src/repository/config.ts";
import { restoreDisk } from "../../src/restore/restore-disk.ts";
import { openNewStore } from "../../src/store/open.ts";
import { buildFunctions } from "../support/bundles.ts";
import { Stack } from "../support/function-stack.ts";
import { orderFor, OrderPlace } from "../support/order-place.ts";
import { MemoryTarget } from "../support/scripted-disk.ts";

beforeAll(buildFunctions);

const MiB = 1024 * 1024;
const never = new AbortController().signal;
const observer = {
  warn: () => undefined,
  info: () => undefined,
  backup: () => undefined,
  verify: () => undefined,
};

/** The only disk of the latest generation, byte for byte. */
async function restored(place: OrderPlace, file: JobFile): Promise<Buffer> {
  return await withJob(jobsOf(file)[0]!, place.runner(), never, async ({ session }) => {
    const manifest = (await place.generations(session.repository)).at(-1)!;
    const target = new MemoryTarget(manifest.disks[0]!.size);
    await restoreDisk(manifest.disks[0]!, target, session, new AbortController(), () => undefined);
    return target.bytes;
  });
}

test("a pull that its deadline stops five times ends in a generation equal to the disk", async () => {
  const slow = "    limit_upload: 2MiB"; // five times come to less than the disk
  const stack = await Stack.start(slow, 24 * MiB);
  const { aws, place, queue } = stack;
  const repository = await place.repository();
  await aws.send(queue, JSON.stringify(orderFor("web")), "web");
  const reached: number[] = [];
  let timeoutMs = 1600;
  for (let stops = 0; stops < 5; stops++) {
    const { records, failed } = await stack.work("pull", timeoutMs);
    expect([records.length, failed], JSON.stringify(stack.lines().at(-1))).toEqual([1, []]);
    // on a machine with much else to do: what came no further gets more time, before it is given up
    timeoutMs = stack.lines().at(-1)!["idle"] === 0 ? 1600 : 2 * timeoutMs;
    expect(await place.generations(repository)).toEqual([]);
    expect(await readdir(place.path("repository/leases/web")).catch(() => [])).toEqual([]);
    reached.push(parseBackupOrder(records[0]!.body).continued?.reached ?? 0);
  }
  expect(reached.toSorted((a, b) => a - b)).toEqual(reached);
  const { failed } = await stack.work("pull");
  expect(failed).toEqual([]);
  const [generation, ...others] = await place.generations(repository);
  expect(others).toEqual([]);
  expect(generation!.stats.bytesDeduplicated).toBeGreaterThan(0); // what the others had stored was found
  expect(await aws.counts(queue)).toEqual({ waiting: 0, taken: 0 });
  expect((await restored(place, place.file())).equals(await place.bytes())).toBe(true);
  expect((await stack.look()).findings).toEqual([]);
});

test("what comes no further is not continued for ever", async () => {
  const stack = await Stack.start("    verify: { percent: 100 }");
  const { aws, place, queue, upkeep } = stack;
  await place.repository();
  const idle = { slices: 9, idle: 3 };
  await aws.send(queue, JSON.stringify(orderFor("web", { continued: { ...idle, reached: 5 } })), "web");
  const order: UpkeepOrder = {
    order: "upkeep",
    job: "nightly",
    scheduledAt: "2026-11-24T06:17:00Z",
    continued: { ...idle, step: "verify", failed: [] },
  };
  await aws.send(upkeep, JSON.stringify(order), "nightly");
  expect((await stack.work("pull")).failed).toHaveLength(1);
  expect((await stack.work("maintain")).failed).toHaveLength(1);
  expect((await stack.look()).findings).toEqual([
    "functions/function/pull/nightly/web",
    "functions/function/maintain/nightly",
  ]);
});

const UPKEEP = `    retention: { keep_last: 1 }
    prune: { grace: 24h, max_unused: "0" }
    verify: { percent: 100 }`;

/** A repository of six generations of a disk of 12 MiB, each with other changes; all of it ten days old. */
async function oldRepository(place: OrderPlace): Promise<void> {
  await place.repository();
  const file = place.file();
  for (let time = 0; time < 6; time++) {
    await withJob(jobsOf(file)[0]!, place.runner(), never, async (job) => {
      expect((await runSource(job, "web", { signal: never, observer })).failure).toBeUndefined();
    });
    const image = await open(place.image, "r+");
    for (let at = time; at < 12 * 16; at += 5) await image.write(randomBytes(65_536), 0, 65_536, at * 65_536);
    await image.close();
  }
  await age(place.location);
}

async function age(folder: string): Promise<void> {
  const then = new Date(Date.now() - 10 * 24 * 3_600_000);
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    if (entry.isFile()) await utimes(join(entry.parentPath, entry.name), then, then);
  }
}

/** The same file, of a copy of the repository. */
function fileOf(place: OrderPlace, location: string): JobFile {
  const { file, problems } = parseJobFile(place.text(UPKEEP).replace(place.location, location), {});
  expect(problems).toEqual([]);
  return file!;
}

/** By the ledger of verifies. */
async function packsInUse(location: string): Promise<number> {
  const store = await openNewStore(location);
  const { last } = await readLedger(await openRepository(store, never), never, (error) => {
    throw error;
  });
  store.close();
  return last.size;
}

/** What upkeep leaves, as far as it does not depend on chance. */
async function outcomeOf(location: string, before: ReadonlySet<string>): Promise<unknown> {
  const store = await openNewStore(location);
  const repository: Repository = await openRepository(store, never);
  const condemned: string[] = [];
  for await (const record of loadCondemned(repository, never))
    condemned.push(...record.packs, ...record.layers);
  const names = (await readdir(location, { recursive: true })).filter((name) => before.has(name)).sort();
  const ledger = await readLedger(repository, never, (error) => {
    throw error;
  });
  const generations = await readdir(join(location, "generations/web"));
  store.close();
  return {
    generations,
    names,
    condemned: condemned.filter((id) => before.has(`packs/${id}`) || before.has(`layers/${id}`)).sort(),
    runs: ledger.runs,
    lastRead: [...new Set(ledger.last.values())],
  };
}

test("upkeep in ten slices and more leaves what upkeep in one leaves", async () => {
  const place = await OrderPlace.make(12 * MiB);
  await oldRepository(place);
  const copy = place.path("copy");
  await cp(place.location, copy, { recursive: true, preserveTimestamps: true });
  const before = new Set(await readdir(copy, { recursive: true }));
  const order: UpkeepOrder = {
    order: "upkeep",
    job: "nightly",
    scheduledAt: "2026-11-24T06:17:00Z",
    steps: ["forget", "prune", "verify", "scrub"],
  };
  const startedMs = performance.now();
  const uncut = await upkeepSlice(order, fileOf(place, place.location), place.runner(), {
    signal: never,
    observer,
  });
  const wholeMs = performance.now() - startedMs;
  expect(uncut).toEqual({ next: undefined, failures: [] });

  let left: UpkeepOrder | undefined = order;
  let packsRead = 0;
  const stops: string[] = [];
  for (let slice = 1; left !== undefined; slice++) {
    expect(slice).toBeLessThan(60);
    const stop = new AbortController();
    const cut = (): void => stop.abort(deadlineError());
    // soon at first, so that each step is stopped somewhere; a verify after each pack
    const timer = slice <= 16 ? setTimeout(cut, (wholeMs * (1 + (slice % 4))) / 24) : undefined;
    const told = {
      ...observer,
      verify: () => {
        packsRead++;
        if (slice <= 20) cut();
      },
    };
    const { next, failures } = await upkeepSlice(left, fileOf(place, copy), place.runner(), {
      signal: stop.signal,
      observer: told,
    });
    clearTimeout(timer);
    expect(failures).toEqual([]);
    if (next !== undefined) stops.push(next.continued!.step);
    left = next;
  }
  expect(stops.length).toBeGreaterThanOrEqual(9);
  expect(new Set(stops)).toContain("verify");
  expect(packsRead).toBe(await packsInUse(copy)); // none twice
  expect(await outcomeOf(copy, before)).toEqual(await outcomeOf(place.location, before));
  const [here, there] = await Promise.all([
    restored(place, fileOf(place, place.location)),
    restored(place, fileOf(place, copy)),
  ]);
  expect(here.equals(there)).toBe(true);
});
