import { crc32 } from "node:zlib";
import { expect, test } from "vitest";
import { KiB, MiB } from "../../../src/bytes/size.ts";
import { AppError } from "../../../src/errors.ts";
import { packKey } from "../../../src/repository/names.ts";
import {
  CHECKSUM_SPAN,
  PACK_HEADER_SIZE,
  checkPackHeader,
  checkPackTrailer,
  decodePackEnd,
} from "../../../src/repository/pack.ts";
import { SLOTS_MAX } from "../../../src/repository/pack-directory.ts";
import { PackDirectories } from "../../../src/repository/pack-reader.ts";
import { type CompletedPack, PackWriter } from "../../../src/repository/pack-writer.ts";
import type { PartUpload } from "../../../src/store/store.ts";
import { testBlob } from "../../support/blobs.ts";
import { SEALINGS, memoryRepository } from "../../support/memory-repository.ts";
import { MemoryStore } from "../../support/memory-store.ts";

const never = new AbortController().signal;

/** A store whose uploads can be held back, watched and failed. */
class WatchedStore extends MemoryStore {
  readonly events: string[] = [];
  partsNow = 0;
  partsMost = 0;
  beforePart: (number: number) => Promise<void> = () => Promise.resolve();
  beforeComplete: () => Promise<void> = () => Promise.resolve();

  override async beginUpload(key: string, signal: AbortSignal): Promise<PartUpload> {
    const upload = await super.beginUpload(key, signal);
    return {
      key,
      part: async (number, bytes, partSignal): Promise<void> => {
        this.partsNow++;
        this.partsMost = Math.max(this.partsMost, this.partsNow);
        try {
          await this.beforePart(number);
          await upload.part(number, bytes, partSignal);
        } finally {
          this.partsNow--;
        }
      },
      complete: async (completeSignal): Promise<void> => {
        await this.beforeComplete();
        await upload.complete(completeSignal);
        this.events.push(`complete ${key}`);
      },
      abort: async (): Promise<void> => {
        this.events.push(`abort ${key}, ${this.partsNow} parts under way`);
        await upload.abort();
      },
    };
  }
}

function setUp(options: { encrypted?: boolean; partsInFlight?: number } = {}) {
  const store = new WatchedStore();
  const repository = memoryRepository({ encrypted: options.encrypted ?? false, store });
  const run = new AbortController();
  const packs: CompletedPack[] = [];
  const onPack = (pack: CompletedPack): void => {
    store.events.push(`onPack ${packKey(pack.pack)}`);
    packs.push(pack);
  };
  const writer = new PackWriter(repository, { partsInFlight: options.partsInFlight ?? 3, onPack }, run);
  return { store, repository, run, packs, writer };
}

test.each(SEALINGS)("every blob lies where its directory says ($name)", async ({ encrypted }) => {
  const { store, repository, packs, writer } = setUp({ encrypted });
  const written = [];
  for (let seed = 0; seed < 60; seed++) {
    const length = 1 + ((seed * 7919) % (60 * KiB)) + (encrypted ? 28 : 0);
    const { blob, entry } = testBlob(seed, length, { rawLength: 64 * KiB, encrypted });
    written.push({ blob, entry, at: await writer.append(blob, entry) });
  }
  await writer.finish();
  expect(packs.length).toBeGreaterThan(1);
  const directories = new PackDirectories(repository, { cacheBytes: MiB });
  for (const { blob, entry, at } of written) {
    const pack = packs.find((each) => each.pack === at.pack)!;
    const directory = await directories.get(pack.directory.ref, never);
    const object = store.bytes(packKey(at.pack));
    const offset = directory.offsetOf(at.slot);
    expect(object.subarray(offset, offset + directory.storedLength(at.slot)).equals(blob)).toBe(true);
    expect(directory.idAt(at.slot).equals(entry.id)).toBe(true);
    expect(directory.crc32(at.slot)).toBe(crc32(blob));
    expect(directory.rawLength(at.slot)).toBe(64 * KiB);
    expect(directory.codec(at.slot)).toBe(1);
  }
});

test.each(SEALINGS)(
  "packs keep to the pack size and their trailers tell the truth ($name)",
  async ({ encrypted }) => {
    const { store, repository, packs, writer } = setUp({ encrypted });
    for (let seed = 0; seed < 50; seed++) {
      const { blob, entry } = testBlob(seed, 64 * KiB + (encrypted ? 28 : 0), { encrypted });
      await writer.append(blob, entry);
    }
    await writer.finish();
    expect(new Set(packs.map(({ pack }) => pack)).size).toBe(4); // 15 blobs of 64 KiB in 1 MiB
    for (const { pack, objectSize, storedDirectory } of packs) {
      const object = store.bytes(packKey(pack));
      expect(object.length).toBe(objectSize);
      expect(object.length).toBeLessThanOrEqual(repository.config.packSize);
      checkPackHeader(object.subarray(0, PACK_HEADER_SIZE), encrypted, pack);
      const frame = decodePackEnd(object.subarray(-64), object.length, pack);
      const checksums = checkPackTrailer(object.subarray(frame.trailerOffset), frame, pack);
      for (const [span, checksum] of checksums.entries()) {
        const from = span * CHECKSUM_SPAN;
        expect(crc32(object.subarray(from, Math.min(from + CHECKSUM_SPAN, frame.trailerOffset)))).toBe(
          checksum,
        );
      }
      expect(object.subarray(frame.directoryOffset, frame.trailerOffset).equals(storedDirectory)).toBe(true);
    }
  },
);

test("R11: a pack is told of only after the store acknowledged it", async () => {
  const { store, writer } = setUp();
  let acknowledge = (): void => undefined;
  store.beforeComplete = () => new Promise((resolve) => (acknowledge = resolve));
  const { blob, entry } = testBlob(1, 500, { rawLength: 1000 });
  const { pack } = await writer.append(blob, entry);
  const finished = writer.finish();
  while (store.requests()["UploadPart"] !== 1 || store.partsNow > 0) await new Promise(setImmediate);
  for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate);
  expect(store.events).toEqual([]);
  acknowledge();
  await finished;
  expect(store.events).toEqual([`complete ${packKey(pack)}`, `onPack ${packKey(pack)}`]);
});

test("memory is bounded: append waits for a free part", async () => {
  const { store, writer } = setUp({ partsInFlight: 3 });
  let release = (): void => undefined;
  const gate = new Promise<void>((resolve) => (release = resolve));
  store.beforePart = () => gate;
  let appended = 0;
  const all = (async (): Promise<void> => {
    for (let seed = 0; seed < 40; seed++) {
      const { blob, entry } = testBlob(seed, 64 * KiB);
      await writer.append(blob, entry);
      appended++;
    }
  })();
  for (let turn = 0; turn < 200; turn++) await new Promise(setImmediate);
  expect(appended).toBeLessThanOrEqual(6); // three parts of two chunks
  release();
  await all;
  await writer.finish();
  expect(store.partsMost).toBeLessThanOrEqual(3);
});

test("the first failure of a part ends the run and leaves nothing behind", async () => {
  const { store, run, packs, writer } = setUp();
  const broken = new AppError("unavailable", "E_STORE", "The bucket does not answer");
  store.beforePart = (number) => (number === 2 ? Promise.reject(broken) : Promise.resolve());
  const appendAll = async (): Promise<void> => {
    for (let seed = 0; seed < 100; seed++) {
      const { blob, entry } = testBlob(seed, 64 * KiB);
      await writer.append(blob, entry);
    }
  };
  await expect(appendAll()).rejects.toBe(broken);
  await expect(writer.finish()).rejects.toBe(broken);
  expect(run.signal.reason).toBe(broken);
  expect(store.partsNow).toBe(0);
  expect(store.uploads.size).toBe(0);
  expect(packs).toEqual([]);
  expect(store.objects.size).toBe(0);
});

test("an upload is dropped only when none of its parts is under way any more", async () => {
  const { store, writer } = setUp();
  const broken = new AppError("unavailable", "E_STORE", "The bucket does not answer");
  store.beforePart = async (number) => {
    if (number === 1) throw broken;
    for (let turn = 0; turn < 50; turn++) await new Promise(setImmediate); // a request that is slow to stop
  };
  const appendAll = async (): Promise<void> => {
    for (let seed = 0; seed < 100; seed++) {
      const { blob, entry } = testBlob(seed, 64 * KiB);
      await writer.append(blob, entry);
    }
  };
  await expect(appendAll()).rejects.toBe(broken);
  await writer.abort();
  expect(store.events).toEqual([expect.stringMatching(/^abort .*, 0 parts under way$/)]);
});

test("a pack takes 65,536 blobs, and then another one begins", async () => {
  const store = new WatchedStore();
  const repository = memoryRepository({ store, packSize: 16 * MiB, partSize: MiB });
  const counts: number[] = [];
  const onPack = ({ directory }: CompletedPack): void => void counts.push(directory.slotCount);
  const writer = new PackWriter(repository, { partsInFlight: 2, onPack }, new AbortController());
  const { blob, entry } = testBlob(1, 1, { rawLength: 2 });
  for (let slot = 0; slot <= SLOTS_MAX; slot++) await writer.append(blob, entry);
  await writer.finish();
  expect(counts.toSorted((a, b) => b - a)).toEqual([SLOTS_MAX, 1]);
});

test("a failed completion drops the upload and is the run's failure", async () => {
  const { store, writer, packs } = setUp();
  const broken = new AppError("full", "E_STORE_FULL", "The bucket is full");
  store.beforeComplete = () => Promise.reject(broken);
  const { blob, entry } = testBlob(1, 1000);
  await writer.append(blob, entry);
  await expect(writer.finish()).rejects.toBe(broken);
  expect([store.uploads.size, store.objects.size, packs.length]).toEqual([0, 0, 0]);
});

test("a failing onPack fails the run, and the pack stays", async () => {
  const store = new WatchedStore();
  const repository = memoryRepository({ store });
  const broken = new AppError("full", "E_STORE_FULL", "No room for the index");
  const run = new AbortController();
  const onPack = (): Promise<void> => Promise.reject(broken);
  const writer = new PackWriter(repository, { partsInFlight: 2, onPack }, run);
  const { blob, entry } = testBlob(1, 1000);
  await writer.append(blob, entry);
  await expect(writer.finish()).rejects.toBe(broken);
  expect(store.objects.size).toBe(1);
  expect(store.events.filter((event) => event.startsWith("abort"))).toEqual([]);
});

test("abort from outside ends an append that waits, and drops every upload", async () => {
  const { store, run, writer } = setUp({ partsInFlight: 2 });
  store.beforePart = () =>
    new Promise((_, reject) => run.signal.addEventListener("abort", () => reject(run.signal.reason)));
  const appendAll = async (): Promise<void> => {
    for (let seed = 0; seed < 100; seed++) {
      const { blob, entry } = testBlob(seed, 64 * KiB);
      await writer.append(blob, entry);
    }
  };
  const appending = appendAll();
  while (store.partsNow < 2) await new Promise(setImmediate);
  const stop = new AppError("cancelled", "E_INTERRUPTED", "Stopped by the user");
  run.abort(stop);
  await expect(appending).rejects.toBe(stop);
  await writer.abort();
  expect([store.partsNow, store.uploads.size, store.objects.size]).toEqual([0, 0, 0]);
  await expect(writer.append(Buffer.alloc(1), testBlob(1, 1).entry)).rejects.toMatchObject({
    code: "E_PACK_WRITER",
  });
});

test("a blob that changed since it was sealed is refused", async () => {
  const { store, writer } = setUp();
  const { blob, entry } = testBlob(1, 1000);
  blob[500]! ^= 1;
  await expect(writer.append(blob, entry)).rejects.toMatchObject({ code: "E_BLOB_CHANGED" });
  await writer.abort();
  expect(store.objects.size + store.uploads.size).toBe(0);
});

test("blobs are not kept: the caller's buffer may be used again at once", async () => {
  const { store, writer } = setUp();
  const shared = Buffer.from(new SharedArrayBuffer(64 * KiB));
  const places = [];
  for (let seed = 0; seed < 10; seed++) {
    const { blob, entry } = testBlob(seed, 64 * KiB);
    shared.set(blob);
    places.push({ blob, at: await writer.append(shared, entry) });
  }
  await writer.finish();
  for (const { blob, at } of places) {
    const offset = PACK_HEADER_SIZE + at.slot * 64 * KiB;
    expect(
      store
        .bytes(packKey(at.pack))
        .subarray(offset, offset + blob.length)
        .equals(blob),
    ).toBe(true);
  }
});

test("nothing appended, nothing stored", async () => {
  const { store, run, writer } = setUp();
  await writer.finish();
  await writer.abort();
  expect(run.signal.aborted).toBe(false);
  expect(store.requests()).toEqual({});
});

test("names of packs are fresh, also for the same blobs and after a failed upload", async () => {
  const names = new Set<string>();
  for (let round = 0; round < 3; round++) {
    const { store, writer } = setUp();
    if (round === 1)
      store.beforeComplete = () => Promise.reject(new AppError("unavailable", "E_STORE", "gone"));
    const { blob, entry } = testBlob(1, 1000);
    names.add((await writer.append(blob, entry)).pack);
    await writer.finish().catch(() => undefined);
  }
  expect(names.size).toBe(3);
});
