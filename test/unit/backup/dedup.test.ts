import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { expect, test } from "vitest";
import { hasCode } from "../../../src/errors.ts";
import { recordDamaged } from "../../../src/repository/damaged.ts";
import { packKey } from "../../../src/repository/names.ts";
import { PackDirectories } from "../../../src/repository/pack-reader.ts";
import type { Backups } from "../../support/backups.ts";
import { FaultyStore } from "../../support/faulty-store.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import type { MemoryStore } from "../../support/memory-store.ts";
import { CHUNK, diskOf, expectSame, idOf, newBackups, numbers, unchangedDisk } from "./chunks.ts";

const never = new AbortController().signal;

/** Runs SQL on the dedup cache. */
function onCache<T>({ cacheDir, repository }: Backups, work: (database: DatabaseSync) => T): T {
  const database = new DatabaseSync(join(cacheDir, `${repository.config.repository}.sqlite`));
  try {
    return work(database);
  } finally {
    database.close();
  }
}

function packsIn(store: MemoryStore): string[] {
  return [...store.objects.keys()]
    .filter((key) => key.startsWith("packs/"))
    .map((key) => key.slice("packs/".length));
}

/** The pack and slot of a chunk, and where its blob begins. */
async function placeOf(
  backups: Backups,
  packs: readonly string[],
  content: number,
): Promise<{ pack: string; slot: number; offset: number }> {
  const directories = new PackDirectories(backups.repository, { cacheBytes: 0 });
  for (const pack of packs) {
    const directory = await directories.load(pack, never);
    for (let slot = 0; slot < directory.slotCount; slot++) {
      if (directory.idAt(slot).equals(idOf(content))) return { pack, slot, offset: directory.offsetOf(slot) };
    }
  }
  throw new Error(`chunk ${content} is nowhere`);
}

test("a chunk is stored once, whichever disk or source it comes from", async () => {
  const backups = await newBackups();
  const disk = diskOf([1, 2, 1, 3, 2, 1]);
  const first = await backups.backup([disk]);
  expect(first.stats).toMatchObject({ chunksStored: 3, chunksDeduplicated: 3 });
  const second = await backups.backup([diskOf([3, 2, 1, 4])], { source: "db" });
  expect(second.stats).toMatchObject({ chunksStored: 1, chunksDeduplicated: 3 });
  expectSame(await backups.restore(first.manifest.disks[0]!), disk.bytes);
  const own = await backups.backup([diskOf([3, 2, 1, 4])], { source: "mail", scope: "source" });
  expect(own.stats).toMatchObject({ chunksStored: 4, chunksDeduplicated: 0 });
});

test("R8: a cache that points at other slots costs storage, never the content", async () => {
  const backups = await newBackups();
  await backups.backup([diskOf(numbers(1, 9))]);
  onCache(backups, (database) => database.exec("UPDATE chunks SET slot = (slot + 1) % 8"));
  const disk = diskOf(numbers(1, 9));
  const { manifest, stats } = await backups.backup([disk], { source: "db" });
  expect(stats).toMatchObject({ chunksStored: 8, chunksDeduplicated: 0 });
  expectSame(await backups.restore(manifest.disks[0]!), disk.bytes);
});

test("R8: what this run has stored is confirmed too, once it is known from the cache alone", async () => {
  const backups = await newBackups({ packChunks: 4 });
  // the last batch repeats the first one; those between make the pipeline move on to the packs
  const between = Array.from({ length: 9 * 16 }, () => 99);
  const contents = [...numbers(1, 17), ...between, ...numbers(1, 17)];
  const disk = diskOf(contents, {
    onRead: async (offset) => {
      if (offset < (16 + between.length) * CHUNK) return;
      const complete = (): number =>
        onCache(backups, (cache) => cache.prepare("SELECT slot FROM chunks").all().length);
      while (complete() < 12) await new Promise((resolve) => setTimeout(resolve, 5));
      onCache(backups, (cache) => cache.exec("UPDATE chunks SET slot = (slot + 1) % 3"));
    },
  });
  const { manifest } = await backups.backup([disk]);
  expectSame(await backups.restore(manifest.disks[0]!), disk.bytes);
});

test("a repeated chunk finds its first copy though the cache has lost it", async () => {
  const backups = await newBackups({ packChunks: 4 });
  // the last batch is decided before the first one is placed, and placed when the first one's packs are complete
  const contents = [...numbers(1, 65), ...numbers(1, 17)];
  const disk = diskOf(contents);
  const store = new HookedStore(backups.store, {
    after: (operation) => {
      if (operation === "complete")
        setImmediate(() => onCache(backups, (cache) => cache.exec("DELETE FROM chunks")));
    },
  });
  const { manifest, stats } = await backups.backup([disk], { store });
  expect(stats).toMatchObject({ chunksStored: 64, chunksDeduplicated: 16 });
  expectSame(await backups.restore(manifest.disks[0]!), disk.bytes);
});

test("R11: chunks of a pack that was never completed are known to nobody", async () => {
  const backups = await newBackups();
  const faulty = new FaultyStore(backups.store, { operation: "complete", kind: "before" });
  let known: unknown;
  const store = new HookedStore(faulty, {
    before: (operation) => {
      if (operation === "complete")
        known = onCache(backups, (cache) => cache.prepare("SELECT * FROM chunks").all());
    },
  });
  const disk = diskOf(numbers(1, 5));
  await expect(backups.backup([disk], { store })).rejects.toMatchObject({ code: "E_STORE" });
  faulty.assertAllHit();
  expect(known).toEqual([]);
  expect([...backups.store.objects.keys()].filter((key) => /^(index|packs)/.test(key))).toEqual([]);
  expect(backups.store.uploads.size).toBe(0);
  const { manifest, stats } = await backups.backup([disk]);
  expect(stats.chunksStored).toBe(4);
  expectSame(await backups.restore(manifest.disks[0]!), disk.bytes);
});

test("R5: packs that no index object lists any more are not pointed at", async () => {
  const backups = await newBackups();
  await backups.backup([diskOf(numbers(1, 5))]);
  for (const key of backups.store.objects.keys())
    if (key.startsWith("index/")) backups.store.objects.delete(key);
  const { stats } = await backups.backup([diskOf(numbers(1, 5))], { source: "db" });
  expect(stats).toMatchObject({ chunksStored: 4, chunksDeduplicated: 0 });
});

test.each([
  ["an incremental", true],
  ["a rescan", false],
])("R12: %s stores a chunk again that lives in a damaged slot", async (_, incremental) => {
  const backups = await newBackups();
  const contents = numbers(1, 9);
  const { manifest: parent } = await backups.backup([diskOf(contents)]);
  const { pack, slot, offset } = await placeOf(backups, packsIn(backups.store), 5);
  backups.store.bytes(packKey(pack))[offset + 100]! ^= 1;
  await expect(backups.restore(parent.disks[0]!)).rejects.toSatisfy((error) => hasCode(error, "E_BLOB_CRC"));
  await recordDamaged(backups.repository, pack, [slot], never);
  const disk = unchangedDisk(contents);
  const { manifest, stats } = incremental
    ? await backups.backup([disk], { bitmap: "b0", parent: parent.generation })
    : await backups.backup([diskOf(contents)]);
  expect(stats).toMatchObject({ chunksStored: 1, chunksDeduplicated: 0 });
  expectSame(await backups.restore(manifest.disks[0]!), disk.bytes);
  // nor is it a duplicate for anybody else
  const other = diskOf([5, 5]);
  const elsewhere = await backups.backup([other], { source: "db" });
  expectSame(await backups.restore(elsewhere.manifest.disks[0]!), other.bytes);
});

test("R12: a pack that is gone altogether is made up for by the next rescan", async () => {
  const backups = await newBackups({ packChunks: 4 });
  const contents = numbers(1, 9);
  await backups.backup([diskOf(contents)]);
  const { pack } = await placeOf(backups, packsIn(backups.store), 5);
  backups.store.objects.delete(packKey(pack));
  await recordDamaged(backups.repository, pack, numbers(0, 4), never);
  const disk = diskOf(contents);
  const { manifest, stats } = await backups.backup([disk]);
  expect(stats.chunksStored).toBeGreaterThan(0);
  expect(stats.chunksUnchanged).toBeGreaterThan(0);
  expectSame(await backups.restore(manifest.disks[0]!), disk.bytes);
});

test("a run that failed has listed what it stored: the next one stores only the rest", async () => {
  const backups = await newBackups({ packChunks: 4 });
  const contents = numbers(1, 17);
  const assertAlive = (): Promise<void> => Promise.reject(new Error("the job is gone"));
  await expect(backups.backup([diskOf(contents)], { assertAlive })).rejects.toThrow("the job is gone");
  const disk = diskOf(contents);
  const { manifest, stats } = await backups.backup([disk]);
  expect(stats).toMatchObject({ chunksStored: 0, chunksDeduplicated: 16 });
  expectSame(await backups.restore(manifest.disks[0]!), disk.bytes);
});

test("a list of packs that could not be stored is stored when the failed run cleans up", async () => {
  const backups = await newBackups();
  const store = new FaultyStore(backups.store, { operation: "put", kind: "before", key: /^index/ });
  await expect(backups.backup([diskOf(numbers(1, 9))], { store })).rejects.toMatchObject({ code: "E_STORE" });
  store.assertAllHit();
  const { stats } = await backups.backup([diskOf(numbers(1, 9))]);
  expect(stats).toMatchObject({ chunksStored: 0, chunksDeduplicated: 8 });
});
