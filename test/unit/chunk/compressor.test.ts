import { zstdDecompressSync } from "node:zlib";
import { expect, test } from "vitest";
import { compressOnce, reusingCompressor } from "../../../src/chunk/compressor.ts";
import { noise } from "../../support/random-disk.ts";

const CHUNK = 256 * 1024;
const inputs: readonly Buffer[] = [
  Buffer.from("a"),
  Buffer.alloc(CHUNK, "a line of text\n"),
  noise(1, CHUNK),
  Buffer.alloc(0),
  Buffer.concat([noise(2, 1000), Buffer.alloc(70_001, "more of the same; ")]),
  Buffer.alloc(CHUNK),
];

test("one context gives, chunk after chunk, the very frames that a new one gives", () => {
  const compress = reusingCompressor(CHUNK);
  expect(compress).not.toBe(compressOnce); // this Node is built as expected: else the test says nothing
  for (let round = 0; round < 3; round++) {
    for (const raw of inputs) {
      const packed = Buffer.from(compress(raw));
      expect(packed.equals(compressOnce(raw))).toBe(true);
      expect(zstdDecompressSync(packed).equals(raw)).toBe(true);
    }
  }
});

test("takes more than it was made for, by the slower way", () => {
  const compress = reusingCompressor(1000);
  const raw = noise(3, 5000);
  expect(zstdDecompressSync(compress(raw)).equals(raw)).toBe(true);
  expect(zstdDecompressSync(compress(Buffer.from("small"))).toString()).toBe("small");
});
