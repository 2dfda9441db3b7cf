import { expect, test } from "vitest";
import { KiB, MiB } from "../../../src/bytes/size.ts";
import { AppError } from "../../../src/errors.ts";
import type { Repository } from "../../../src/repository/config.ts";
import { newUuid, packKey } from "../../../src/repository/names.ts";
import { SLOTS_MAX } from "../../../src/repository/pack-directory.ts";
import { PackDirectories, type PackRef } from "../../../src/repository/pack-reader.ts";
import { PackWriter } from "../../../src/repository/pack-writer.ts";
import { testBlob } from "../../support/blobs.ts";
import { FaultyStore } from "../../support/faulty-store.ts";
import { SEALINGS, memoryRepository } from "../../support/memory-repository.ts";
import { MemoryStore } from "../../support/memory-store.ts";

const never = new AbortController().signal;

/** Packs of `slots` small blobs each; the blobs of no two packs are alike. */
async function writePacks(repository: Repository, packs: number, slots: number): Promise<PackRef[]> {
  const refs: PackRef[] = [];
  for (let pack = 0; pack < packs; pack++) {
    const onPack = ({ directory }: { directory: { ref: PackRef } }): void => void refs.push(directory.ref);
    const writer = new PackWriter(repository, { partsInFlight: 2, onPack }, new AbortController());
    for (let slot = 0; slot < slots; slot++) {
      const { encrypted } = repository.sealer;
      const { blob, entry } = testBlob(pack * 100_000 + slot, 40, { rawLength: 64 * KiB, encrypted });
      await writer.append(blob, entry);
    }
    await writer.finish();
  }
  return refs;
}

function gets(store: MemoryStore): number {
  return store.requests()["GetObject"] ?? 0;
}

test.each(SEALINGS)("one request a directory, none for a cached one ($name)", async ({ encrypted }) => {
  const repository = memoryRepository({ encrypted });
  const [ref] = await writePacks(repository, 1, 3);
  const directories = new PackDirectories(repository, { cacheBytes: MiB });
  const directory = await directories.get(ref!, never);
  expect([directory.ref, gets(repository.store)]).toEqual([ref, 1]);
  expect(await directories.get(ref!, never)).toBe(directory);
  expect(await directories.load(ref!.pack, never)).toBe(directory);
  expect(gets(repository.store)).toBe(1);
});

test.each(SEALINGS)(
  "load: the digest comes from the pack; a large directory takes two requests ($name)",
  async ({ encrypted }) => {
    const repository = memoryRepository({ encrypted });
    const [small] = await writePacks(repository, 1, 10);
    const [large] = await writePacks(repository, 1, 2000);
    const directories = new PackDirectories(repository, { cacheBytes: MiB });
    expect((await directories.load(small!.pack, never)).ref).toEqual(small);
    expect(gets(repository.store)).toBe(1);
    expect((await directories.load(large!.pack, never)).ref).toEqual(large);
    expect(gets(repository.store)).toBe(3);
  },
);

test("calls for one pack at the same time share the request", async () => {
  const repository = memoryRepository();
  const [ref] = await writePacks(repository, 1, 3);
  const directories = new PackDirectories(repository, { cacheBytes: 0 });
  const all = await Promise.all(Array.from({ length: 10 }, () => directories.get(ref!, never)));
  expect(new Set(all).size).toBe(1);
  expect(gets(repository.store)).toBe(1);
});

test("one of several callers leaves; the last one to leave ends the request", async () => {
  class Hanging extends MemoryStore {
    readonly asked: AbortSignal[] = [];
    override async getTail(
      ...args: Parameters<MemoryStore["getTail"]>
    ): Promise<{ bytes: Buffer; size: number }> {
      const signal = args[2];
      this.asked.push(signal);
      if (this.asked.length === 1) {
        await new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
      }
      return super.getTail(...args);
    }
  }
  const store = new Hanging();
  const repository = memoryRepository({ store });
  const [ref] = await writePacks(repository, 1, 3);
  const directories = new PackDirectories(repository, { cacheBytes: MiB });
  const [first, second] = [new AbortController(), new AbortController()];
  const calls = [directories.get(ref!, first.signal), directories.get(ref!, second.signal)];
  const reasons = [new Error("first"), new Error("second")];
  first.abort(reasons[0]);
  await expect(calls[0]).rejects.toBe(reasons[0]);
  expect(store.asked.map((signal) => signal.aborted)).toEqual([false]);
  second.abort(reasons[1]);
  const later = directories.get(ref!, never); // joins nothing that was given up
  expect(store.asked.map((signal) => signal.aborted)).toEqual([true, false]);
  await expect(calls[1]).rejects.toBe(reasons[1]);
  expect((await later).ref).toEqual(ref);
});

test("a failure is not remembered", async () => {
  const base = memoryRepository();
  const [ref] = await writePacks(base, 1, 3);
  const gone = new AppError("unavailable", "E_STORE", "No answer");
  const store = new FaultyStore(base.store, { operation: "getTail", kind: "before", error: gone });
  const directories = new PackDirectories({ ...base, store }, { cacheBytes: MiB });
  const both = [directories.get(ref!, never), directories.get(ref!, never)];
  await expect(both[0]).rejects.toBe(gone);
  await expect(both[1]).rejects.toBe(gone);
  expect((await directories.get(ref!, never)).ref).toEqual(ref);
});

test("the cache is bounded; the least recently used goes first", async () => {
  const repository = memoryRepository();
  const refs = await writePacks(repository, 4, 10);
  const directories = new PackDirectories(repository, { cacheBytes: 3 * 490 });
  const [a, b, c, d] = refs as [PackRef, PackRef, PackRef, PackRef];
  for (const ref of [a, b, c, a, d]) await directories.get(ref, never); // b goes
  const before = gets(repository.store);
  for (const ref of [a, c, d]) await directories.get(ref, never);
  expect(gets(repository.store) - before).toBe(0);
  await directories.get(b, never);
  expect(gets(repository.store) - before).toBe(1);
});

test.each(SEALINGS)(
  "a reference that does not fit the pack is refused, cached or not ($name)",
  async ({ encrypted }) => {
    const repository = memoryRepository({ encrypted });
    const [ref, other] = await writePacks(repository, 2, 3);
    const lies: PackRef[] = [
      { ...ref!, digest: other!.digest },
      { ...ref!, slotCount: 2 },
      { ...ref!, blobBytes: ref!.blobBytes + 1 },
    ];
    for (const warm of [false, true]) {
      const directories = new PackDirectories(repository, { cacheBytes: MiB });
      if (warm) await directories.get(ref!, never);
      for (const lie of lies)
        await expect(directories.get(lie, never)).rejects.toMatchObject({ kind: "corrupt" });
      expect((await directories.get(ref!, never)).ref).toEqual(ref);
    }
  },
);

test("what a reference announces is bounded before anything is fetched", async () => {
  const repository = memoryRepository();
  const [ref] = await writePacks(repository, 1, 3);
  const directories = new PackDirectories(repository, { cacheBytes: MiB });
  for (const lie of [
    { slotCount: SLOTS_MAX + 1 },
    { slotCount: 0 },
    { blobBytes: 2 ** 40 },
    { blobBytes: 0 },
  ]) {
    const reading = directories.get({ ...ref!, ...lie }, never);
    await expect(reading).rejects.toMatchObject({ kind: "corrupt", code: "E_PACK_DIRECTORY" });
  }
  expect(gets(repository.store)).toBe(0);
});

test.each(SEALINGS)(
  "R15: a pack put in another's place is refused by its reference ($name)",
  async ({ encrypted }) => {
    const store = new MemoryStore();
    const repository = memoryRepository({ encrypted, store });
    const [ref, other] = await writePacks(repository, 2, 3);
    store.objects.set(packKey(ref!.pack), store.objects.get(packKey(other!.pack))!);
    const reading = new PackDirectories(repository, { cacheBytes: MiB }).get(ref!, never);
    await expect(reading).rejects.toMatchObject({ kind: "corrupt", code: "E_PACK_DIRECTORY" });
    await expect(reading).rejects.toThrow(ref!.pack);
    const loading = new PackDirectories(repository, { cacheBytes: MiB }).load(ref!.pack, never);
    if (encrypted) await expect(loading).rejects.toMatchObject({ code: "E_SEAL" });
    else expect((await loading).digest.equals(other!.digest)).toBe(true); // so only a hint, without a reference
  },
);

test("a pack that is gone, and one that was cut off, are damage of the repository", async () => {
  const store = new MemoryStore();
  const repository = memoryRepository({ store });
  const [ref] = await writePacks(repository, 1, 3);
  const directories = new PackDirectories(repository, { cacheBytes: MiB });
  const missing = { ...ref!, pack: newUuid() };
  await expect(directories.get(missing, never)).rejects.toMatchObject({
    kind: "corrupt",
    code: "E_PACK_MISSING",
  });
  const stored = store.objects.get(packKey(ref!.pack))!;
  store.objects.set(packKey(ref!.pack), { ...stored, bytes: stored.bytes.subarray(1) });
  await expect(directories.get(ref!, never)).rejects.toMatchObject({ kind: "corrupt", code: "E_PACK_SIZE" });
});

test("a plain pack in an encrypted repository is refused, and the other way round", async () => {
  const store = new MemoryStore();
  for (const encrypted of [false, true]) {
    const [ref] = await writePacks(memoryRepository({ encrypted, store }), 1, 3);
    const other = memoryRepository({ encrypted: !encrypted, store });
    const directories = new PackDirectories(other, { cacheBytes: MiB });
    await expect(directories.get(ref!, never)).rejects.toMatchObject({ kind: "corrupt" });
    await expect(directories.load(ref!.pack, never)).rejects.toMatchObject({
      kind: "corrupt",
      code: "E_PACK_DIRECTORY",
    });
  }
});
