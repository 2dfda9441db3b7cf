import { expect, test } from "vitest";
import { AppError } from "../../../src/errors.ts";
import type { Extent } from "../../../src/disk/disk.ts";
import type { ManifestDisk } from "../../../src/repository/manifest.ts";
import { restoreInPlace, type InPlaceDisk } from "../../../src/restore/in-place.ts";
import type { ObjectStore } from "../../../src/store/store.ts";
import { Backups } from "../../support/backups.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import { memoryRepository } from "../../support/memory-repository.ts";
import { allocation, dirtySince, noise, RandomDisk } from "../../support/random-disk.ts";
import { MemoryTarget, ScriptedDisk } from "../../support/scripted-disk.ts";
import { seeded } from "../../support/seeded.ts";
import { CHUNK, chunksOf, diskOf, expectSame, newBackups, numbers } from "../backup/chunks.ts";

const quiet = (): void => undefined;
type TestBackups = Awaited<ReturnType<typeof newBackups>>;

/** A disk in memory that is there already. */
function placeOf(
  content: Buffer,
  extents?: readonly Extent[],
): InPlaceDisk & { source: ScriptedDisk; target: MemoryTarget } {
  const target = new MemoryTarget(content.length);
  content.copy(target.bytes);
  return { source: new ScriptedDisk("target", target.bytes, extents && { extents }), target };
}

function putRight(
  backups: TestBackups,
  disk: ManifestDisk,
  place: InPlaceDisk,
  store?: ObjectStore,
  run = new AbortController(),
) {
  return restoreInPlace(disk, place, backups.tools(store), run, quiet);
}

test("a target that holds the generation already: all of it is read, nothing fetched or written", async () => {
  const backups = await newBackups({ packChunks: 4 });
  const disk = diskOf([1, 0, 2, 3, 0, 4, 5, 6]);
  const { manifest } = await backups.backup([disk]);
  let blobs = 0;
  const store = new HookedStore(backups.store, {
    before: (operation) => void (blobs += Number(operation === "getRange")),
  });
  const place = placeOf(disk.bytes);
  const stats = await putRight(backups, manifest.disks[0]!, place, store);
  expect(stats).toEqual({
    bytesRead: 8 * CHUNK,
    bytesVouched: 0,
    bytesFetched: 0,
    chunksFetched: 0,
    bytesWritten: 0,
    chunksWritten: 0,
    bytesZero: 0,
  });
  expect(blobs).toBe(0);
  expectSame(place.target.bytes, disk.bytes);
  expect(place.target.flushed).toBe(1);
});

test("what differs is fetched and written, zeros are written, and no more", async () => {
  const backups = await newBackups({ packChunks: 5 });
  const disk = diskOf([1, 2, 0, 0, 3, 4, 5, 6, 0, 7]);
  const { manifest } = await backups.backup([disk]);
  const place = placeOf(chunksOf(1, 9, 0, 8, 3, 0, 5, 6, 8, 7));
  place.target.bytes[9 * CHUNK + 77]! ^= 1;
  const stats = await putRight(backups, manifest.disks[0]!, place);
  expectSame(place.target.bytes, disk.bytes);
  expect(stats).toMatchObject({
    chunksFetched: 3,
    chunksWritten: 3,
    bytesWritten: 3 * CHUNK,
    bytesZero: 2 * CHUNK,
  });
});

test("a chunk that many places share is fetched once", async () => {
  const backups = await newBackups();
  const disk = diskOf([1, 1, 1, 2]);
  const { manifest } = await backups.backup([disk]);
  const place = placeOf(chunksOf(3, 1, 3, 2));
  const stats = await putRight(backups, manifest.disks[0]!, place);
  expectSame(place.target.bytes, disk.bytes);
  expect(stats).toMatchObject({ chunksFetched: 1, chunksWritten: 2, bytesFetched: CHUNK });
});

test("what the target says is zero is not read, and is right only where the disk is zero", async () => {
  const backups = await newBackups();
  const disk = diskOf([1, 0, 2, 0]);
  const { manifest } = await backups.backup([disk]);
  const place = placeOf(chunksOf(0, 0, 2, 0), [
    { offset: 0, length: 2 * CHUNK, state: "zero" },
    { offset: 2 * CHUNK, length: CHUNK, state: "data" },
    { offset: 3 * CHUNK, length: CHUNK, state: "zero" },
  ]);
  const stats = await putRight(backups, manifest.disks[0]!, place);
  expectSame(place.target.bytes, disk.bytes);
  expect(place.source.reads).toEqual([{ offset: 2 * CHUNK, length: CHUNK }]);
  expect(stats).toMatchObject({ bytesRead: CHUNK, chunksWritten: 1, bytesZero: 0 });
});

test("with a bitmap only chunks that it touches are looked at, those whole", async () => {
  const backups = await newBackups();
  const disk = diskOf([1, 2, 3, 4, 0, 0]);
  const { manifest } = await backups.backup([disk]);
  const dirty = (chunk: number): Extent => ({ offset: chunk * CHUNK + 512, length: 512, state: "data" });
  const place = placeOf(chunksOf(8, 8, 3, 4, 8, 8), [
    { offset: 0, length: CHUNK + 512, state: "unchanged" },
    dirty(1),
    { offset: CHUNK + 1024, length: 3 * CHUNK - 512, state: "unchanged" },
    dirty(4),
    { offset: 4 * CHUNK + 1024, length: 2 * CHUNK - 1024, state: "unchanged" },
  ]);
  const stats = await putRight(backups, manifest.disks[0]!, place);
  // what the bitmap vouches for is left as it is: here it lies
  expectSame(place.target.bytes, chunksOf(8, 2, 3, 4, 0, 8));
  expect(place.source.reads.map(({ offset }) => offset / CHUNK)).toEqual([1, 4]);
  expect(stats).toMatchObject({ bytesRead: 2 * CHUNK, bytesVouched: 4 * CHUNK, chunksFetched: 1 });
});

test("a target that is larger keeps what lies behind the disk's end, also in the disk's last chunk", async () => {
  const backups = await newBackups();
  const bytes = Buffer.concat([chunksOf(1, 2), noise(3, 700)]);
  const { manifest } = await backups.backup([new ScriptedDisk("vda", bytes)]);
  const place = placeOf(chunksOf(1, 5, 6, 7));
  await putRight(backups, manifest.disks[0]!, place);
  const behind = chunksOf(6, 7).subarray(700);
  expectSame(place.target.bytes, Buffer.concat([bytes, behind]));
  const again = await putRight(backups, manifest.disks[0]!, place);
  expect(again).toMatchObject({ bytesRead: bytes.length, chunksFetched: 0, bytesWritten: 0 });
});

test("a run that was stopped half-way is completed by the next", async () => {
  const backups = await newBackups({ packChunks: 2 });
  const disk = diskOf(numbers(1, 41));
  const { manifest } = await backups.backup([disk]);
  const place = placeOf(Buffer.alloc(disk.size, 0xee));
  const run = new AbortController();
  const reason = new AppError("cancelled", "E_INTERRUPTED", "Interrupted");
  let ranges = 0;
  const store = new HookedStore(backups.store, {
    before: (operation) => {
      if (operation === "getRange" && ++ranges === 12) run.abort(reason);
    },
  });
  await expect(putRight(backups, manifest.disks[0]!, place, store, run)).rejects.toBe(reason);
  expect(place.target.flushed).toBe(0);
  const stats = await putRight(backups, manifest.disks[0]!, place);
  expectSame(place.target.bytes, disk.bytes);
  expect(stats.chunksFetched).toBeGreaterThan(0);
  expect(stats.chunksFetched).toBeLessThan(40);
});

test("damage counts only where it is needed, and is named then", async () => {
  const backups = await newBackups();
  const disk = diskOf(numbers(1, 9));
  const { manifest } = await backups.backup([disk]);
  const key = [...backups.store.objects.keys()].find((name) => name.startsWith("packs/"))!;
  backups.store.bytes(key)[3 * CHUNK + 500]! ^= 4;
  const elsewhere = placeOf(disk.bytes);
  elsewhere.target.bytes[0]! ^= 1;
  await putRight(backups, manifest.disks[0]!, elsewhere);
  expectSame(elsewhere.target.bytes, disk.bytes);
  const needed = placeOf(disk.bytes);
  needed.target.bytes[3 * CHUNK]! ^= 1;
  await expect(putRight(backups, manifest.disks[0]!, needed)).rejects.toMatchObject({
    kind: "corrupt",
    context: { slot: 3 },
  });
});

test("an encrypted repository names chunks otherwise, and they are compared by those names", async () => {
  const repository = memoryRepository({ encrypted: true });
  const backups = Object.assign(await Backups.start(repository), { store: repository.store });
  const disk = diskOf([1, 2, 0, 3]);
  const { manifest } = await backups.backup([disk]);
  const place = placeOf(chunksOf(1, 9, 0, 3));
  const stats = await putRight(backups, manifest.disks[0]!, place);
  expectSame(place.target.bytes, disk.bytes);
  expect(stats).toMatchObject({ chunksFetched: 1, bytesWritten: CHUNK, bytesZero: 0 });
});

test("a target that cannot be read ends it, and nothing is written", async () => {
  const backups = await newBackups();
  const { manifest } = await backups.backup([diskOf(numbers(1, 9))]);
  const failure = new AppError("source", "E_DISK_READ", "The disk cannot be read");
  const target = new MemoryTarget(8 * CHUNK);
  const before = Buffer.from(target.bytes);
  const source = new ScriptedDisk("target", target.bytes, { onRead: () => Promise.reject(failure) });
  await expect(putRight(backups, manifest.disks[0]!, { source, target })).rejects.toBe(failure);
  expectSame(target.bytes, before);
});

/** Chunks of `wanted` that are not zero and that `held` has not: each is fetched once, however many share it. */
function distinctMissing(held: Buffer, wanted: Buffer): number {
  const missing = new Set<string>();
  for (let at = 0; at < wanted.length; at += CHUNK) {
    const chunk = wanted.subarray(at, at + CHUNK);
    if (chunk.equals(held.subarray(at, at + CHUNK)) || !chunk.some((byte) => byte !== 0)) continue;
    missing.add(chunk.toString("latin1"));
  }
  return missing.size;
}

test("random disks and differences: equal bytes afterwards, and no chunk fetched without need", async () => {
  for (let seed = 1; seed <= 12; seed++) {
    const random = seeded(seed);
    const backups = await newBackups({ packChunks: 4 + random(12) });
    const disk = new RandomDisk("vda", random, CHUNK, 40);
    const generations: { readonly disk: ManifestDisk; readonly bytes: Buffer }[] = [];
    for (let count = 0; count < 3; count++) {
      const bytes = Buffer.from(disk.bytes);
      const { manifest } = await backups.backup([new ScriptedDisk("vda", bytes)]);
      generations.push({ disk: manifest.disks[0]!, bytes });
      disk.change(1 + random(4));
      if (random(3) === 0) disk.resize(40);
    }
    for (const wanted of generations) {
      // the disk as it is now, or one of which a bitmap has recorded since the generation
      const held = Buffer.alloc(wanted.bytes.length);
      disk.bytes.copy(held);
      const now = placeOf(held, random(2) === 0 ? undefined : allocation(held, 4096, random));
      const stats = await putRight(backups, wanted.disk, now);
      expect(now.target.bytes.equals(wanted.bytes), `seed ${seed}`).toBe(true);
      expect(stats.chunksFetched, `seed ${seed}`).toBe(distinctMissing(held, wanted.bytes));
      const recorded = placeOf(held, dirtySince(wanted.bytes, held, 65536 >> random(8), random));
      await putRight(backups, wanted.disk, recorded);
      expect(recorded.target.bytes.equals(wanted.bytes), `seed ${seed}, by its bitmap`).toBe(true);
    }
  }
});
