import { describe, expect, test, vi } from "vitest";
import type { Extent } from "../../../src/disk/disk.ts";
import { AppError } from "../../../src/errors.ts";
import { packKey } from "../../../src/repository/names.ts";
import { OpenedChunks } from "../../../src/serve/opened-chunks.ts";
import type { ObjectStore } from "../../../src/store/store.ts";
import { FaultyStore } from "../../support/faulty-store.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import { RandomDisk } from "../../support/random-disk.ts";
import { ScriptedDisk } from "../../support/scripted-disk.ts";
import { seeded } from "../../support/seeded.ts";
import { CHUNK, chunksOf, diskOf, expectSame, newBackups, numbers } from "../backup/chunks.ts";
import { readAt, servedDisk } from "./generation-disks.ts";

const { signal } = new AbortController();

/** A store that counts ranged GETs, and can be made to hold them back. */
function counted(inner: ObjectStore): {
  store: HookedStore;
  ranges: string[];
  gate: { promise: Promise<void> };
} {
  const ranges: string[] = [];
  const gate = { promise: Promise.resolve() };
  const store = new HookedStore(inner, {
    before: async (operation, key) => {
      if (operation !== "getRange" || !key.startsWith("packs/")) return;
      ranges.push(key);
      await gate.promise;
    },
  });
  return { store, ranges, gate };
}

async function extentsOf(
  disk: {
    extents(range: { offset: number; length: number }, signal: AbortSignal): AsyncIterable<Extent>;
  },
  offset: number,
  length: number,
): Promise<Extent[]> {
  const extents: Extent[] = [];
  for await (const extent of disk.extents({ offset, length }, signal)) extents.push(extent);
  return extents;
}

describe("what is read", () => {
  test("any range of any generation is what the disk was, however small the memory", async () => {
    for (let seed = 1; seed <= 12; seed++) {
      const random = seeded(seed);
      const backups = await newBackups({ packChunks: 1 + random(5) });
      const guest = new RandomDisk("vda", random, CHUNK, 24);
      await backups.backup([new ScriptedDisk("vda", Buffer.from(guest.bytes))]);
      guest.change(4);
      if (random(2) === 0) guest.resize(24);
      const { manifest } = await backups.backup([new ScriptedDisk("vda", Buffer.from(guest.bytes))]);
      const disk = await servedDisk(backups, manifest, {
        cacheBytes: random(2) === 0 ? CHUNK : 64 * CHUNK,
        aheadBytes: random(2) * 8 * CHUNK,
      });
      expect(disk.size).toBe(guest.bytes.length);
      const reads = Array.from({ length: 30 }, async () => {
        const offset = random(disk.size);
        const length = 1 + random(Math.min(disk.size - offset, 5 * CHUNK));
        const bytes = await readAt(disk, offset, length);
        expect(bytes.equals(guest.bytes.subarray(offset, offset + length)), `seed ${seed}, ${offset}`).toBe(
          true,
        );
      });
      await Promise.all(reads);
      expectSame(await readAt(disk, 0, disk.size), guest.bytes);
    }
  });

  test("what is lent is what would be read, and stays so while memory is used for other chunks", async () => {
    const random = seeded(3);
    const backups = await newBackups({ packChunks: 4 });
    const guest = new RandomDisk("vda", random, CHUNK, 24);
    const { manifest } = await backups.backup([new ScriptedDisk("vda", Buffer.from(guest.bytes))]);
    const disk = await servedDisk(backups, manifest, { cacheBytes: CHUNK });
    const lent = await Promise.all(
      Array.from({ length: 40 }, async () => {
        const offset = random(disk.size);
        const length = 1 + random(Math.min(disk.size - offset, 5 * CHUNK));
        return { offset, length, ...(await disk.lend(offset, length, signal)) };
      }),
    );
    for (let round = 0; round < 3; round++) {
      expectSame(await readAt(disk, 0, disk.size), guest.bytes);
      await new Promise(setImmediate);
    }
    for (const { offset, length, pieces, release } of lent) {
      expectSame(
        Buffer.concat(pieces.map(({ bytes }) => bytes)),
        guest.bytes.subarray(offset, offset + length),
      );
      release();
    }
    expectSame(await readAt(disk, 0, disk.size), guest.bytes);
  });

  test("zeros cost no request, and the map says where they are", async () => {
    const backups = await newBackups();
    const { manifest } = await backups.backup([diskOf([0, 0, 1, 0, 2, 2, 0])]);
    const { store, ranges } = counted(backups.store);
    const disk = await servedDisk(backups, manifest, { store });
    expectSame(await readAt(disk, 0, 2 * CHUNK), Buffer.alloc(2 * CHUNK));
    expectSame(await readAt(disk, 3 * CHUNK + 5, 100), Buffer.alloc(100));
    expect(ranges).toEqual([]);
    const lent = await disk.lend(CHUNK, 4 * CHUNK, signal);
    expect(lent.pieces.map(({ zero }) => zero)).toEqual([true, false, true, false]);
    lent.release();
    expect(await extentsOf(disk, CHUNK + 1, 5 * CHUNK)).toEqual([
      { offset: CHUNK + 1, length: CHUNK - 1, state: "zero" },
      { offset: 2 * CHUNK, length: CHUNK, state: "data" },
      { offset: 3 * CHUNK, length: CHUNK, state: "zero" },
      { offset: 4 * CHUNK, length: CHUNK, state: "data" },
      { offset: 5 * CHUNK, length: CHUNK, state: "data" },
      { offset: 6 * CHUNK, length: 1, state: "zero" },
    ]);
  });
});

describe("how it is fetched", () => {
  test("many who wait for a chunk share one request; neighbours come with one; what is kept costs none", async () => {
    const backups = await newBackups();
    const { manifest } = await backups.backup([diskOf(numbers(1, 9))]);
    const { store, ranges } = counted(backups.store);
    const disk = await servedDisk(backups, manifest, { store });
    await Promise.all(numbers(0, 20).map((one) => readAt(disk, one * 512, 512)));
    expect(ranges).toHaveLength(1);
    await readAt(disk, CHUNK, 6 * CHUNK);
    expect(ranges).toHaveLength(2);
    await readAt(disk, 0, 7 * CHUNK);
    expect(ranges).toHaveLength(2);
  });

  test("what was used least recently goes first when memory is full", async () => {
    const backups = await newBackups();
    const { manifest } = await backups.backup([diskOf(numbers(1, 5))]);
    const { store, ranges } = counted(backups.store);
    const disk = await servedDisk(backups, manifest, { store, cacheBytes: 2 * CHUNK });
    for (const chunk of [0, 1, 0, 2, 0]) await readAt(disk, chunk * CHUNK, 1);
    expect(ranges).toHaveLength(3);
    await readAt(disk, CHUNK, 1);
    expect(ranges).toHaveLength(4);
  });

  test("one who leaves does not take the fetch from the others; when all have left it is given up", async () => {
    const backups = await newBackups();
    const { manifest } = await backups.backup([diskOf([1, 2, 3])]);
    const { store, ranges, gate } = counted(backups.store);
    const { promise, resolve } = Promise.withResolvers<undefined>();
    gate.promise = promise;
    const disk = await servedDisk(backups, manifest, { store });
    const [leaves, leavesToo] = [new AbortController(), new AbortController()];
    const gone = new AppError("cancelled", "E_TEST", "left");
    const first = readAt(disk, 0, CHUNK, leaves.signal);
    const second = readAt(disk, 0, CHUNK);
    const other = readAt(disk, CHUNK, CHUNK, leavesToo.signal);
    await vi.waitUntil(() => ranges.length === 2);
    leaves.abort(gone);
    leavesToo.abort(gone);
    await expect(first).rejects.toBe(gone);
    await expect(other).rejects.toBe(gone);
    resolve(undefined);
    expectSame(await second, chunksOf(1));
    expectSame(await readAt(disk, CHUNK, CHUNK), chunksOf(2)); // and it can be had again
  });

  test("one who leaves takes nothing from who waits for a part of the same request", async () => {
    const backups = await newBackups();
    const { manifest } = await backups.backup([diskOf([1, 2, 3])]);
    const { store, ranges, gate } = counted(backups.store);
    const { promise, resolve } = Promise.withResolvers<undefined>();
    gate.promise = promise;
    const disk = await servedDisk(backups, manifest, { store });
    const leaves = new AbortController();
    const gone = new AppError("cancelled", "E_TEST", "left");
    const first = readAt(disk, 0, 2 * CHUNK, leaves.signal);
    const second = readAt(disk, CHUNK, CHUNK);
    await vi.waitUntil(() => ranges.length === 1);
    leaves.abort(gone);
    await expect(first).rejects.toBe(gone);
    resolve(undefined);
    expectSame(await second, chunksOf(2));
    expect(ranges).toHaveLength(1);
  });

  test("a reader who goes on is read ahead of", async () => {
    const backups = await newBackups({ packChunks: 64 });
    const { manifest } = await backups.backup([diskOf(numbers(1, 65))]);
    const { store, ranges } = counted(backups.store);
    const disk = await servedDisk(backups, manifest, {
      store,
      aheadBytes: 32 * CHUNK,
      cacheBytes: 64 * CHUNK,
    });
    let late = 0;
    for (let chunk = 0; chunk < 64; chunk++) {
      const before = ranges.length;
      expectSame(await readAt(disk, chunk * CHUNK, CHUNK), chunksOf(chunk + 1));
      late += Number(ranges.length > before);
    }
    expect(ranges.length).toBeLessThan(12);
    expect(late).toBeLessThan(12);
  });
});

describe("trouble", () => {
  test("a store that is away for a moment is waited for", async () => {
    const backups = await newBackups();
    const { manifest } = await backups.backup([diskOf([1, 2])]);
    const store = new FaultyStore(
      backups.store,
      { operation: "getRange", kind: "before", key: /packs/ },
      { operation: "getTail", kind: "before", key: /packs/ },
    );
    const disk = await servedDisk(backups, manifest, { store });
    expectSame(await readAt(disk, 0, 2 * CHUNK), chunksOf(1, 2));
    store.assertAllHit();
  });

  test("one that stays away fails reads of what is not in memory, and is asked again later", async () => {
    const backups = await newBackups();
    const { manifest } = await backups.backup([diskOf([1, 2, 0])]);
    let away = false;
    const store = new HookedStore(backups.store, {
      before: (operation) => {
        if (away && operation === "getRange")
          throw new AppError("unavailable", "E_STORE", "The store is away");
      },
    });
    const disk = await servedDisk(backups, manifest, { store });
    await readAt(disk, 0, 1);
    away = true;
    const reading = readAt(disk, CHUNK + 7, 10);
    await expect(reading).rejects.toMatchObject({ kind: "unavailable" });
    await expect(reading).rejects.toThrow(
      `Bytes ${CHUNK + 7} to ${CHUNK + 17} of disk vda of web, generation ${manifest.generation} cannot be read`,
    );
    expectSame(await readAt(disk, 0, CHUNK), chunksOf(1));
    expectSame(await readAt(disk, 2 * CHUNK, CHUNK), chunksOf(0));
    away = false;
    expectSame(await readAt(disk, CHUNK, CHUNK), chunksOf(2));
  });

  test("reads that fail leave no memory behind: more of them than there is room", async () => {
    const backups = await newBackups();
    const { manifest } = await backups.backup([diskOf(numbers(1, 9))]);
    const key = [...backups.store.objects.keys()].find((name) => name.startsWith(packKey("")))!;
    for (let chunk = 0; chunk < 8; chunk += 2) backups.store.bytes(key)[chunk * CHUNK + 500]! ^= 4;
    const disk = await servedDisk(backups, manifest, { cacheBytes: CHUNK });
    for (let round = 0; round < 300; round++) {
      const reads = [0, 2, 4, 6].map((chunk) => readAt(disk, chunk * CHUNK, 1));
      expect((await Promise.allSettled(reads)).every(({ status }) => status === "rejected")).toBe(true);
    }
    expectSame(await readAt(disk, CHUNK, CHUNK), chunksOf(2));
  });

  test("damage fails the reads of that chunk, not of those that were fetched with it", async () => {
    const backups = await newBackups();
    const { manifest } = await backups.backup([diskOf(numbers(1, 9))]);
    const key = [...backups.store.objects.keys()].find((name) => name.startsWith(packKey("")))!;
    backups.store.bytes(key)[3 * CHUNK + 500]! ^= 4;
    const disk = await servedDisk(backups, manifest);
    const reads = await Promise.allSettled([
      readAt(disk, 0, 8 * CHUNK), // with one GET, which the others wait for
      readAt(disk, 0, 3 * CHUNK),
      readAt(disk, 3 * CHUNK, 1),
      readAt(disk, 4 * CHUNK, 4 * CHUNK),
    ]);
    expect(reads.map(({ status }) => status)).toEqual(["rejected", "fulfilled", "rejected", "fulfilled"]);
    const damage = reads[2];
    expect(damage.status === "rejected" && damage.reason).toMatchObject({
      kind: "corrupt",
      message: expect.stringContaining("is damaged at slot 3") as unknown,
    });
  });

  test("damage has what was lent beside it given back", async () => {
    const backups = await newBackups();
    const { manifest } = await backups.backup([diskOf(numbers(1, 9))]);
    const key = [...backups.store.objects.keys()].find((name) => name.startsWith(packKey("")))!;
    backups.store.bytes(key)[3 * CHUNK + 500]! ^= 4;
    const disk = await servedDisk(backups, manifest);
    const lend = vi.spyOn(OpenedChunks.prototype, "lend");
    await expect(disk.lend(0, 8 * CHUNK, signal)).rejects.toMatchObject({ kind: "corrupt" });
    const lent = new Set(lend.mock.calls.map(([cell]) => cell));
    expect(lent.size).toBe(7);
    expect([...lent].map((cell) => cell.lent)).toEqual(Array(7).fill(0));
    lend.mockRestore();
  });
});
