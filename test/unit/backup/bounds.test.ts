import { once } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { expect, test } from "vitest";
import { AppError } from "../../../src/errors.ts";
import { FaultyStore } from "../../support/faulty-store.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import { MemoryStore } from "../../support/memory-store.ts";
import { diskOf, expectSame, newBackups, numbers } from "./chunks.ts";

const READS_MAX = 16; // reads under way at once
const SLABS = 24; // batches in memory at once
const BATCH = 16; // chunks
const interrupted = new AppError("cancelled", "E_INTERRUPTED", "Interrupted");

async function until(fact: () => boolean): Promise<void> {
  while (!fact()) await delay(2);
}

async function hung(signal: AbortSignal): Promise<never> {
  if (!signal.aborted) await once(signal, "abort");
  throw signal.reason;
}

/** Nothing of the run is left, and all it used is fit for use. */
async function expectClean(backups: Awaited<ReturnType<typeof newBackups>>): Promise<void> {
  expect(backups.store.uploads.size, "pending uploads").toBe(0);
  const left = [...backups.store.objects.keys()].filter((key) => /^(leases|generations|layers)\//.test(key));
  expect(left).toEqual([]);
  const disk = diskOf([1, 2, 3]);
  const { manifest } = await backups.backup([disk]);
  expectSame(await backups.restore(manifest.disks[0]!), disk.bytes);
}

test("a source that never answers: reads are bounded, and an abort ends everything", async () => {
  const backups = await newBackups();
  const run = new AbortController();
  const disk = diskOf(numbers(1, 30 * BATCH), { onRead: (_, __, signal) => hung(signal) });
  const backup = backups.backup([disk], { run });
  backup.catch(() => undefined);
  await until(() => disk.reading === READS_MAX);
  run.abort(interrupted);
  await expect(backup).rejects.toBe(interrupted);
  expect(disk.reading).toBe(0);
  expect(disk.readingMost).toBe(READS_MAX);
  expect(disk.reads).toHaveLength(READS_MAX);
  expect(backups.closed).toEqual(["failed"]);
  await expectClean(backups);
});

test("one read that never answers holds up what is behind it, within bounds", async () => {
  const backups = await newBackups();
  const run = new AbortController();
  const disk = diskOf(numbers(1, 60 * BATCH), {
    onRead: (offset, _, signal) => (offset === 0 ? hung(signal) : undefined),
  });
  const backup = backups.backup([disk], { run });
  backup.catch(() => undefined);
  await until(() => disk.reads.length === READS_MAX && disk.reading === 1);
  run.abort(interrupted);
  await expect(backup).rejects.toBe(interrupted);
  expect(disk.reads).toHaveLength(READS_MAX);
  await expectClean(backups);
});

test("a store that never answers: what was read and waits is bounded, and an abort ends everything", async () => {
  const backups = await newBackups();
  const run = new AbortController();
  const store = new FaultyStore(
    backups.store,
    ...Array.from({ length: 5 }, () => ({ operation: "part", kind: "hang" }) as const),
  );
  const disk = diskOf(numbers(1, 60 * BATCH));
  const backup = backups.backup([disk], { run, store });
  backup.catch(() => undefined);
  await until(() => disk.reads.length > READS_MAX);
  run.abort(interrupted);
  await expect(backup).rejects.toBe(interrupted);
  expect(disk.reads.length).toBeLessThanOrEqual(SLABS);
  await expectClean(backups);
});

const readFailed = new AppError("source", "E_READ", "The disk cannot be read");
const storeFailed = new AppError("full", "E_STORE_FULL", "The store is full");

test("the source's error is the one told, not what it causes in the store", async () => {
  const backups = await newBackups();
  const store = new FaultyStore(
    backups.store,
    ...Array.from({ length: 5 }, () => ({ operation: "part", kind: "hang" }) as const),
  );
  const disk = diskOf(numbers(1, 20 * BATCH), {
    onRead: async (offset) => {
      if (offset < 15 * BATCH * 65536) return;
      await until(() => backups.store.uploads.size > 0);
      throw readFailed;
    },
  });
  await expect(backups.backup([disk], { store })).rejects.toBe(readFailed);
  await expectClean(backups);
});

test("the store's error is the one told, not what it causes in the source", async () => {
  const backups = await newBackups();
  const store = new FaultyStore(backups.store, { operation: "part", kind: "before", error: storeFailed });
  const disk = diskOf(numbers(1, 20 * BATCH), {
    onRead: (offset, _, signal) => (offset < 10 * BATCH * 65536 ? undefined : hung(signal)),
  });
  await expect(backups.backup([disk], { store })).rejects.toBe(storeFailed);
  store.assertAllHit();
  await expectClean(backups);
});

test("of two errors at once the first is told, and neither is an echo", async () => {
  const backups = await newBackups();
  const both = Promise.withResolvers<undefined>();
  const store = new HookedStore(backups.store, {
    before: async (operation) => {
      if (operation !== "part" || disk.reads.length < 8) return;
      both.resolve(undefined);
      await Promise.resolve();
      throw storeFailed;
    },
  });
  const disk = diskOf(numbers(1, 30 * BATCH), {
    onRead: async (offset) => {
      if (offset < 18 * BATCH * 65536) return;
      await both.promise;
      throw readFailed;
    },
  });
  const error: unknown = await backups.backup([disk], { store }).catch((reason: unknown) => reason);
  expect([readFailed, storeFailed]).toContain(error);
  await expectClean(backups);
});

test("a run that is aborted before it begins changes nothing", async () => {
  const backups = await newBackups({ store: new MemoryStore() });
  const run = new AbortController();
  run.abort(interrupted);
  await expect(backups.backup([diskOf([1])], { run })).rejects.toBe(interrupted);
  expect(backups.store.objects.size).toBe(0);
  expect(backups.closed).toEqual([]);
});

test("an abort is obeyed wherever it comes, and the next run is right", async () => {
  const backups = await newBackups({ packChunks: 4 });
  const steps: string[] = [];
  const log = new HookedStore(backups.store, {
    before: (operation, key) => void steps.push(`${operation} ${key}`),
  });
  await backups.backup([diskOf(numbers(1, 9))], { store: log, source: "log", scope: "off" });
  for (let stop = 0; stop < steps.length; stop++) {
    const run = new AbortController();
    let step = 0;
    const store = new HookedStore(backups.store, {
      before: () => {
        if (step++ === stop) run.abort(interrupted);
      },
    });
    const source = `s${stop}`;
    const disk = diskOf(numbers(1, 9));
    const outcome = await backups
      .backup([disk], { run, store, source, scope: "off" })
      .catch((error: unknown) => error);
    const at = steps[stop]!;
    if (outcome instanceof Error) expect(outcome, at).toBe(interrupted);
    const ours = [...backups.store.objects.keys()].filter((key) => key.startsWith(`leases/${source}/`));
    expect(ours, at).toEqual([]);
    expect(backups.store.uploads.size, at).toBe(0);
    const next = await backups.backup([disk], { source });
    expect((await backups.restore(next.manifest.disks[0]!)).equals(disk.bytes), at).toBe(true);
  }
  expect((await backups.verify()).problems).toEqual([]);
});
