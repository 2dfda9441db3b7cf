import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { chunkId, Codec, openBlob } from "../../../src/chunk/codec.ts";
import type { ChunkKeys } from "../../../src/chunk/keys.ts";
import { type Slab, SlabPool } from "../../../src/chunk/slabs.ts";
import { ChunkWorkers, type Piece, slabBytes } from "../../../src/chunk/workers.ts";
import { AppError } from "../../../src/errors.ts";
import { seeded } from "../../support/seeded.ts";

const CHUNK = 64 * 1024;
const PER_SLAB = 4;
const KEYS: ChunkKeys = { id: randomBytes(32), blob: randomBytes(32) };
const never = new AbortController().signal;

/** Back to back, as a backup reads them. */
function piecesOf(...lengths: readonly number[]): Piece[] {
  let offset = 0;
  return lengths.map((length) => ({ offset: (offset += length) - length, length }));
}

/** A whole number of chunks of noise, of text, or of zeros. */
function fill(slab: Slab, pieces: readonly Piece[], random: (below: number) => number): void {
  for (const { offset, length } of pieces) {
    const bytes = slab.bytes.subarray(offset, offset + length);
    const kind = random(3);
    if (kind === 0) bytes.fill(0);
    else if (kind === 1) bytes.fill(`line ${random(1000)}\n`);
    else for (let at = 0; at < length; at++) bytes[at] = 1 + random(255);
  }
}

describe.each([
  ["plain", undefined],
  ["sealed", KEYS],
])("%s", (_, keys) => {
  let workers: ChunkWorkers;
  let pool: SlabPool;
  let opened: SlabPool;
  beforeAll(async () => {
    workers = await ChunkWorkers.start({ threads: 2, chunkSize: CHUNK, keys });
    pool = new SlabPool(slabBytes(CHUNK, PER_SLAB), 4);
    opened = new SlabPool(PER_SLAB * CHUNK, 4);
  });
  afterAll(() => workers.close());

  test("batches come back as they were, through identify, seal and open", async () => {
    const random = seeded(7);
    await Promise.all(
      Array.from({ length: 20 }, async () => {
        const [slab, to] = [await pool.take(never), await opened.take(never)];
        const pieces = piecesOf(CHUNK, CHUNK, CHUNK, 1 + random(CHUNK));
        fill(slab, pieces, random);
        const before = Buffer.from(slab.bytes);
        const identities = await workers.identify(slab, pieces);
        const wanted = pieces.flatMap((piece, index) => {
          const raw = before.subarray(piece.offset, piece.offset + piece.length);
          const identity = identities[index]!;
          expect(identity.zero).toBe(raw.every((byte) => byte === 0));
          if (identity.zero) return [];
          expect(identity.id).toEqual(chunkId(raw, keys));
          return [{ ...piece, id: identity.id }];
        });
        const blobs = await workers.seal(slab, wanted);
        const facts = blobs.map((blob, i) => ({ ...blob, rawLength: wanted[i]!.length, id: wanted[i]!.id }));
        const back = facts.map((blob, i) => ({ ...blob, into: wanted[i]!.offset }));
        await workers.open(slab, back, to);
        for (const { offset, length } of wanted) {
          const end = offset + length;
          expect(to.bytes.subarray(offset, end).equals(before.subarray(offset, end))).toBe(true);
        }
        slab.release();
        to.release();
      }),
    );
  });

  test("blobs of incompressible chunks do not run into each other, nor out of the slab", async () => {
    const slab = await pool.take(never);
    const pieces = piecesOf(...Array<number>(PER_SLAB).fill(CHUNK));
    randomBytes(PER_SLAB * CHUNK).copy(slab.bytes);
    const before = Buffer.from(slab.bytes);
    const wanted = pieces.map((piece) => {
      return { ...piece, id: chunkId(before.subarray(piece.offset, piece.offset + CHUNK), keys) };
    });
    const blobs = await workers.seal(slab, wanted);
    let end = 0;
    blobs.forEach(({ offset, length, codec, crc32 }, index) => {
      expect(codec).toBe(Codec.RAW);
      expect(offset).toBeGreaterThanOrEqual(end);
      end = offset + length;
      const stored = slab.bytes.subarray(offset, end);
      const raw = openBlob(stored, { codec, crc32, rawLength: CHUNK, id: wanted[index]!.id }, keys);
      expect(before.subarray(index * CHUNK, (index + 1) * CHUNK).equals(raw)).toBe(true);
    });
    expect(end).toBeLessThanOrEqual(slab.bytes.length);
    slab.release();
  });

  test("a damaged blob fails the call by its index, and the thread goes on", async () => {
    const [slab, to] = [await pool.take(never), await opened.take(never)];
    slab.bytes.fill("text ");
    const pieces = piecesOf(CHUNK, 500, 600).map((piece) => {
      return { ...piece, id: chunkId(slab.bytes.subarray(piece.offset, piece.offset + piece.length), keys) };
    });
    const blobs = (await workers.seal(slab, pieces)).map((blob, i) => {
      return { ...blob, rawLength: pieces[i]!.length, id: pieces[i]!.id, into: pieces[i]!.offset };
    });
    const last = blobs.at(-1)!;
    slab.bytes[last.offset + last.length - 1]! ^= 4;
    const error: unknown = await workers.open(slab, blobs, to).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(AppError);
    expect(error).toMatchObject({
      kind: "corrupt",
      code: "E_BLOB_CRC",
      context: { blob: 2, chunk: last.id.toString("hex") },
    });
    await workers.open(slab, blobs.slice(0, 2), to);
    slab.release();
    to.release();
  });
});

describe("misuse and misfortune", () => {
  async function start(threads: number): Promise<{ workers: ChunkWorkers; slab: Slab }> {
    const workers = await ChunkWorkers.start({ threads, chunkSize: CHUNK });
    onTestFinished(() => workers.close());
    return { workers, slab: await new SlabPool(slabBytes(CHUNK, 1), 1).take(never) };
  }
  const oversized = { offset: 0, length: CHUNK + 100 };
  const outside = { offset: CHUNK, length: CHUNK };
  const negative = { offset: -1, length: 10 };

  test.each([oversized, outside, negative])("pieces must lie in the slab: %o", async (piece) => {
    const { workers, slab } = await start(1);
    await expect(workers.identify(slab, [piece])).rejects.toMatchObject({
      kind: "bug",
      code: "E_SLAB_BOUNDS",
    });
    expect(await workers.identify(slab, piecesOf(10))).toEqual([{ zero: true }]);
  });

  test("pieces to seal must be in order and apart", async () => {
    const { workers, slab } = await start(1);
    const [one, two] = piecesOf(10, 10).map((piece) => ({ ...piece, id: Buffer.alloc(32) }));
    for (const pieces of [
      [two!, one!],
      [one!, one!],
    ]) {
      await expect(workers.seal(slab, pieces)).rejects.toMatchObject({ kind: "bug", code: "E_PIECE_ORDER" });
    }
  });

  test("close waits for what is under way; later calls are refused", async () => {
    const { workers, slab } = await start(2);
    slab.bytes.fill("close");
    const settled: string[] = [];
    const calls = Array.from({ length: 10 }, () => {
      return workers.identify(slab, piecesOf(CHUNK)).then(() => settled.push("call"));
    });
    await Promise.all([workers.close().then(() => settled.push("close")), workers.close(), ...calls]);
    expect(settled).toEqual([...Array<string>(10).fill("call"), "close"]);
    await expect(workers.identify(slab, [])).rejects.toMatchObject({ kind: "bug", code: "E_WORKERS_CLOSED" });
  });
});
