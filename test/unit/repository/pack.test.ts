import { hash } from "node:crypto";
import { crc32 } from "node:zlib";
import fc from "fast-check";
import { expect, test } from "vitest";
import { KiB, MiB } from "../../../src/bytes/size.ts";
import { type Codec, chunkId, openBlob, sealBlob } from "../../../src/chunk/codec.ts";
import { AppError } from "../../../src/errors.ts";
import { packKey } from "../../../src/repository/names.ts";
import {
  CHECKSUM_SPAN,
  PACK_END_SIZE,
  checkPackHeader,
  checkPackTrailer,
  decodePackEnd,
  encodePackHeader,
  encodePackTrailer,
  packLength,
  tailLength,
} from "../../../src/repository/pack.ts";
import { DirectoryBuilder, PackDirectory, directoryDigest } from "../../../src/repository/pack-directory.ts";
import { PackDirectories } from "../../../src/repository/pack-reader.ts";
import { PackWriter } from "../../../src/repository/pack-writer.ts";
import { masterKeySealer } from "../../../src/repository/sealing.ts";
import { testBlob } from "../../support/blobs.ts";
import { SEALINGS, TEST_REPOSITORY, memoryRepository } from "../../support/memory-repository.ts";
import { type MustFail, vectors } from "../../support/vectors.ts";

interface GoodPack {
  readonly name: string;
  readonly encrypted: boolean;
  readonly hex?: string;
  readonly digest: string;
  readonly slots: { id: string; stored: string; raw: string; rawLength: number; codec: number }[];
  readonly repeated?: { count: number; length: number };
  readonly sha256?: string;
}

const never = new AbortController().signal;
const known = vectors("packs") as { pack: string; chunkSize: number; pass: GoodPack[]; fail: MustFail[] };
const sealer = masterKeySealer(TEST_REPOSITORY, Buffer.from(Array.from({ length: 32 }, (_, index) => index)));
const whole = known.pass.filter(({ hex }) => hex !== undefined);

async function loadVector(
  hex: string,
  encrypted: boolean,
): Promise<{ directory: PackDirectory; object: Buffer }> {
  const base = memoryRepository({ chunkSize: known.chunkSize });
  const repository = encrypted ? { ...base, sealer } : base;
  const object = Buffer.from(hex, "hex");
  await repository.store.put(packKey(known.pack), object, never);
  return {
    directory: await new PackDirectories(repository, { cacheBytes: MiB }).load(known.pack, never),
    object,
  };
}

test.each(whole)("reads what another program wrote: $name", async ({ hex, encrypted, digest, slots }) => {
  const { directory, object } = await loadVector(hex!, encrypted);
  expect(directory.slotCount).toBe(slots.length);
  expect(directory.digest.toString("hex")).toBe(digest);
  for (const [slot, expected] of slots.entries()) {
    const stored = Buffer.from(expected.stored, "hex");
    const offset = directory.offsetOf(slot);
    expect(object.subarray(offset, offset + directory.storedLength(slot)).equals(stored)).toBe(true);
    expect(directory.idAt(slot).toString("hex")).toBe(expected.id);
    expect(directory.rawLength(slot)).toBe(expected.rawLength);
    expect(directory.codec(slot)).toBe(expected.codec);
    expect(directory.crc32(slot)).toBe(crc32(stored));
  }
  checkPackHeader(object.subarray(0, 16), encrypted, known.pack);
});

test.each(whole)("opens the blobs that another program sealed: $name", ({ encrypted, slots }) => {
  const keys = encrypted ? sealer.chunkKeys : undefined;
  for (const { id, stored, raw, rawLength, codec } of slots) {
    const bytes = Buffer.from(stored, "hex");
    const facts = { id: Buffer.from(id, "hex"), rawLength, codec: codec as Codec, crc32: crc32(bytes) };
    expect(Buffer.from(openBlob(bytes, facts, keys)).toString("hex")).toBe(raw);
  }
});

test("R16: a blob moves to another pack unopened, and opens there, and only for its chunk", async () => {
  const base = memoryRepository();
  const repository = { ...base, sealer };
  const keys = sealer.chunkKeys!;
  const raw = Buffer.from("some chunk");
  const id = chunkId(raw, keys);
  const sealed = sealBlob(raw, id, keys);
  const facts = { id, rawLength: raw.length, codec: sealed.codec, crc32: sealed.crc32 };
  let blob: Buffer = sealed.bytes;
  for (let move = 0; move < 2; move++) {
    const writer = new PackWriter(
      repository,
      { partsInFlight: 2, onPack: () => undefined },
      new AbortController(),
    );
    const { pack, slot } = await writer.append(blob, facts);
    await writer.finish();
    const directory = await new PackDirectories(repository, { cacheBytes: MiB }).load(pack, never);
    blob = Buffer.alloc(directory.storedLength(slot));
    await base.store.getRange(packKey(pack), directory.offsetOf(slot), blob, never);
  }
  expect(Buffer.from(openBlob(blob, facts, keys)).equals(raw)).toBe(true);
  const other = { ...facts, id: chunkId(Buffer.from("other"), keys) };
  expect(() => openBlob(blob, other, keys)).toThrow(
    expect.objectContaining({ kind: "corrupt", code: "E_BLOB_SEAL" }),
  );
});

test.each(known.fail)("refuses: $name", async ({ hex, code }) => {
  await expect(loadVector(hex, false)).rejects.toMatchObject({ kind: "corrupt", code });
});

test("writes what another program writes, over several checksum spans", () => {
  const { repeated, sha256 } = known.pass.find(({ repeated }) => repeated !== undefined)!;
  const blobs = Array.from({ length: repeated!.count }, (_, index) =>
    Buffer.alloc(repeated!.length, index + 1),
  );
  const entries = blobs.map((blob, index) => ({
    id: hash("sha256", String(index), "buffer"),
    storedLength: blob.length,
    rawLength: blob.length,
    codec: 0 as const,
    crc32: crc32(blob),
  }));
  expect(hash("sha256", assemble(Buffer.concat(blobs), entries).object)).toBe(sha256);
});

type Entry = Parameters<DirectoryBuilder["add"]>[0];

/** A plain pack by way of the codec alone. */
function assemble(blobs: Buffer, entries: readonly Entry[]): { object: Buffer; directory: Buffer } {
  const builder = new DirectoryBuilder();
  for (const entry of entries) builder.add(entry);
  const directory = Buffer.from(builder.bytes());
  const covered = Buffer.concat([encodePackHeader(false), blobs, directory]);
  const checksums = [];
  for (let at = 0; at < covered.length; at += CHECKSUM_SPAN) {
    checksums.push(crc32(covered.subarray(at, at + CHECKSUM_SPAN)));
  }
  const frame = {
    sealed: false,
    slotCount: entries.length,
    directoryOffset: 16 + blobs.length,
    directoryLength: directory.length,
    digest: directoryDigest(directory),
  };
  return { object: Buffer.concat([covered, encodePackTrailer(frame, checksums)]), directory };
}

const slotShape = fc.record({
  id: fc.uint8Array({ minLength: 32, maxLength: 32 }),
  rawLength: fc.integer({ min: 2, max: 64 * KiB }),
  share: fc.double({ min: 0, max: 1, noNaN: true }),
  crc32: fc.nat({ max: 2 ** 32 - 1 }),
});

test("directory: what goes in comes out, for any slots", () => {
  fc.assert(
    fc.property(fc.array(slotShape, { minLength: 1, maxLength: 200 }), fc.boolean(), (shapes, sealed) => {
      const overhead = sealed ? 28 : 0;
      const entries = shapes.map(({ id, rawLength, share, crc32: checksum }): Entry => {
        const zstd = share < 0.9;
        const storedLength = overhead + (zstd ? 1 + Math.floor(share * (rawLength - 1)) : rawLength);
        return { id, rawLength, storedLength, codec: zstd ? 1 : 0, crc32: checksum };
      });
      const builder = new DirectoryBuilder();
      entries.forEach((entry, slot) => expect(builder.add(entry)).toBe(slot));
      const blobBytes = entries.reduce((sum, { storedLength }) => sum + storedLength, 0);
      const source = {
        pack: "p",
        digest: Buffer.alloc(32),
        firstOffset: 16,
        blobBytes,
        sealed,
        chunkSize: 64 * KiB,
      };
      const directory = new PackDirectory(builder.bytes(), source);
      let offset = 16;
      for (const [slot, entry] of entries.entries()) {
        expect(directory.idAt(slot).equals(entry.id)).toBe(true);
        expect(directory.offsetOf(slot)).toBe(offset);
        expect(directory.storedLength(slot)).toBe(entry.storedLength);
        expect(directory.rawLength(slot)).toBe(entry.rawLength);
        expect(directory.codec(slot)).toBe(entry.codec);
        expect(directory.crc32(slot)).toBe(entry.crc32);
        offset += entry.storedLength;
      }
      expect(directory.memoryBytes).toBe(entries.length * 49);
    }),
  );
});

test("asking for a slot that is not there is a bug, not garbage", async () => {
  const { directory } = await loadVector(whole[0]!.hex!, false);
  for (const slot of [-1, 3, 0.5, NaN]) {
    for (const ask of ["idAt", "offsetOf", "storedLength", "rawLength", "codec", "crc32"] as const) {
      expect(() => directory[ask](slot)).toThrow(expect.objectContaining({ kind: "bug", code: "E_SLOT" }));
    }
  }
});

test.each(whole)("no bit of directory or trailer can change unnoticed: $name", async ({ hex, encrypted }) => {
  const { directory, object } = await loadVector(hex!, encrypted);
  const from = object.length - tailLength(directory.slotCount, directory.blobBytes, encrypted);
  for (let bit = from * 8; bit < object.length * 8; bit++) {
    const changed = Buffer.from(object);
    changed[bit >> 3]! ^= 1 << (bit & 7);
    const failure: unknown = await loadVector(changed.toString("hex"), encrypted).catch(
      (error: unknown) => error,
    );
    expect(failure, `bit ${bit - from * 8} of the tail`).toBeInstanceOf(AppError);
    expect(failure).toMatchObject({ kind: "corrupt" });
  }
});

test.each(SEALINGS)("no bit of the header can change unnoticed ($name)", ({ encrypted }) => {
  const header = encodePackHeader(encrypted);
  checkPackHeader(header, encrypted, "p");
  for (let bit = 0; bit < 128; bit++) {
    const changed = Buffer.from(header);
    changed[bit >> 3]! ^= 1 << (bit & 7);
    expect(() => checkPackHeader(changed, encrypted, "p")).toThrow(
      expect.objectContaining({ code: "E_PACK_HEADER" }),
    );
  }
});

test("lengths are computed without the object, at every boundary of a span", () => {
  for (const extra of [-1, 0, 1]) {
    const length = CHECKSUM_SPAN - 16 - 45 + extra; // everything before the trailer is about one span
    const { blob, entry } = testBlob(1, length, { rawLength: length + 1 });
    const { object } = assemble(blob, [{ ...entry, storedLength: length }]);
    expect(object.length).toBe(packLength(1, length, false));
    const frame = decodePackEnd(object.subarray(-PACK_END_SIZE), object.length, "p");
    expect(object.length - frame.directoryOffset).toBe(tailLength(1, length, false));
    expect(checkPackTrailer(object.subarray(frame.trailerOffset), frame, "p").length).toBe(extra > 0 ? 2 : 1);
  }
});
