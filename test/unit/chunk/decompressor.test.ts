import { crc32, zstdCompressSync } from "node:zlib";
import { expect, test } from "vitest";
import { chunkId, Codec, openBlob } from "../../../src/chunk/codec.ts";
import { type Decompress, decompressOnce, reusingDecompressor } from "../../../src/chunk/decompressor.ts";
import { noise } from "../../support/random-disk.ts";

const CHUNK = 256 * 1024;
const inputs: readonly Buffer[] = [
  Buffer.from("a"),
  Buffer.alloc(CHUNK, "a line of text\n"),
  noise(1, CHUNK),
  Buffer.concat([noise(2, 1000), Buffer.alloc(70_001, "more of the same; ")]),
  Buffer.alloc(CHUNK),
];

function allRight(decompress: Decompress): void {
  for (const raw of inputs) {
    expect(Buffer.compare(decompress(zstdCompressSync(raw), raw.length), raw)).toBe(0);
  }
}

test("one context and one buffer unpack frame after frame", () => {
  const decompress = reusingDecompressor(CHUNK);
  const one = decompress(zstdCompressSync(inputs[0]!), 1);
  expect(decompress(zstdCompressSync(inputs[1]!), CHUNK).buffer).toBe(one.buffer); // else the test says nothing
  for (let round = 0; round < 3; round++) allRight(decompress);
});

test.each<[string, Buffer, number]>([
  [
    "damaged in its header (RFC 8878, 3.1.1.1.1: the reserved bit)",
    zstdCompressSync(inputs[1]!).fill(0x28, 4, 5),
    CHUNK,
  ],
  ["cut short", zstdCompressSync(noise(4, 5000)).subarray(0, 3000), 5000],
  ["longer than expected", zstdCompressSync(noise(4, 5000)), 4999],
  ["far longer than expected", zstdCompressSync(Buffer.alloc(4 * CHUNK)), CHUNK],
  ["shorter than expected", zstdCompressSync(noise(4, 5000)), 5001],
  ["no frame", Buffer.from("nothing of the kind"), 5000],
  ["empty", Buffer.alloc(0), 5000],
])(
  "a frame that is %s fails as it does with a new context, and the next one is not hurt",
  (_, packed, length) => {
    const decompress = reusingDecompressor(CHUNK);
    allRight(decompress);
    expect(() => decompress(packed, length)).toThrow();
    expect(() => decompressOnce(packed, length)).toThrow();
    allRight(decompress);
  },
);

test("takes more than it was made for, by the slower way", () => {
  const raw = noise(3, 5000);
  expect(Buffer.compare(reusingDecompressor(1000)(zstdCompressSync(raw), raw.length), raw)).toBe(0);
});

test("what an unfinished frame leaves in the context makes no good chunk look bad", () => {
  const raw = Buffer.alloc(CHUNK, "a line of text\n");
  const stored = zstdCompressSync(raw);
  const facts = { codec: Codec.ZSTD, crc32: crc32(stored), rawLength: raw.length, id: chunkId(raw) };
  const stale: Decompress = (_, length) => Buffer.alloc(length, "of the chunk before");
  expect(Buffer.compare(openBlob(stored, facts, undefined, stale), raw)).toBe(0);
});
