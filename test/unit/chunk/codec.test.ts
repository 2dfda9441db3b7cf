import { hash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { crc32, zstdCompressSync } from "node:zlib";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  type BlobFacts,
  chunkId,
  Codec,
  isZero,
  looksRandom,
  openBlob,
  sealBlob,
  SEAL_OVERHEAD,
  sealInto,
} from "../../../src/chunk/codec.ts";
import type { ChunkKeys } from "../../../src/chunk/keys.ts";
import { hasCode } from "../../../src/errors.ts";
import vectors from "./vectors.json" with { type: "json" };

const hex = (text: string): Buffer => Buffer.from(text, "hex");
const KEYS: ChunkKeys = { id: hex(vectors.idKey), blob: hex(vectors.blobKey) };
const OTHER_KEYS: ChunkKeys = { id: KEYS.id, blob: Buffer.alloc(32, 9) };
const MODES = [
  ["plain", undefined],
  ["sealed", KEYS],
] as const;

/** Chunks that zstd likes and ones it does not, of odd lengths, some on shared memory. */
const someChunk = fc
  .tuple(
    fc.oneof(
      fc.uint8Array({ minLength: 1, maxLength: 5000 }),
      fc
        .tuple(fc.uint8Array({ minLength: 1, maxLength: 20 }), fc.integer({ min: 1, max: 300 }))
        .map(([part, times]) =>
          Uint8Array.from({ length: part.length * times }, (_, i) => part[i % part.length]!),
        ),
    ),
    fc.boolean(),
  )
  .map(([bytes, shared]) => (shared ? onSharedMemory(bytes) : bytes));

function onSharedMemory(bytes: Uint8Array): Uint8Array {
  const copy = new Uint8Array(new SharedArrayBuffer(bytes.length + 3), 3);
  copy.set(bytes);
  return copy;
}

function seal(raw: Uint8Array, keys?: ChunkKeys): { bytes: Buffer; facts: BlobFacts } {
  const id = chunkId(raw, keys);
  const { bytes, codec, crc32 } = sealBlob(raw, id, keys);
  return { bytes, facts: { codec, crc32, rawLength: raw.length, id } };
}

/** As a vandal who knows about checksums: the CRC is made to fit. */
function open(bytes: Uint8Array, facts: BlobFacts, keys?: ChunkKeys): Uint8Array {
  return openBlob(bytes, { ...facts, crc32: crc32(bytes) }, keys);
}

function codeOf(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    for (const code of ["E_BLOB_CRC", "E_BLOB_SEAL", "E_BLOB_ZSTD", "E_BLOB_ID"] as const) {
      if (hasCode(error, code) && error.kind === "corrupt") return code;
    }
    throw error;
  }
  return "nothing thrown";
}

describe.each(MODES)("%s blobs", (_, keys) => {
  test("what is sealed opens to the same bytes, and is never longer than promised", () => {
    fc.assert(
      fc.property(someChunk, (raw) => {
        const { bytes, facts } = seal(raw, keys);
        expect(bytes.length).toBeLessThanOrEqual(raw.length + (keys === undefined ? 0 : SEAL_OVERHEAD));
        expect(Buffer.compare(openBlob(bytes, facts, keys), raw)).toBe(0);
      }),
    );
  });

  test("is sealed on top of its own chunk", () => {
    fc.assert(
      fc.property(someChunk, (raw) => {
        const memory = Buffer.concat([raw, Buffer.alloc(SEAL_OVERHEAD)]);
        const id = chunkId(raw, keys);
        const { length, codec, crc32 } = sealInto(memory, memory.subarray(0, raw.length), id, keys);
        const facts = { codec, crc32, rawLength: raw.length, id };
        expect(Buffer.compare(openBlob(memory.subarray(0, length), facts, keys), raw)).toBe(0);
      }),
    );
  });

  test.each([-50_000, -28, 0, 28, 2000, 32_756, 32_757, 100_000])(
    "a long one is sealed on top of itself, %i bytes further on",
    (ahead) => {
      const raw = randomBytes(150_001);
      const from = Math.max(0, -ahead);
      const memory = Buffer.alloc(from + Math.max(0, ahead) + raw.length + SEAL_OVERHEAD);
      raw.copy(memory, from);
      const id = chunkId(raw, keys);
      const into = memory.subarray(from + ahead);
      const { length, codec, crc32 } = sealInto(into, memory.subarray(from, from + raw.length), id, keys);
      const facts = { codec, crc32, rawLength: raw.length, id };
      expect(Buffer.compare(openBlob(into.subarray(0, length), facts, keys), raw)).toBe(0);
    },
  );

  test.each([
    ["raw", hash("sha256", "noise", "buffer")],
    ["zstd", Buffer.alloc(600, "compressible ")],
  ])("every bit flip of a %s blob is found by its CRC, and by more than its CRC", (kind, raw) => {
    const { bytes, facts } = seal(raw, keys);
    expect(facts.codec).toBe(kind === "raw" ? Codec.RAW : Codec.ZSTD);
    for (let bit = 0; bit < bytes.length * 8; bit++) {
      bytes[bit >> 3]! ^= 1 << (bit & 7);
      expect(codeOf(() => openBlob(bytes, facts, keys))).toBe("E_BLOB_CRC");
      if (keys !== undefined) expect(codeOf(() => open(bytes, facts, keys))).toBe("E_BLOB_SEAL");
      // Not every bit of a zstd frame means something: it opens to the true bytes or not at all.
      else if (kind === "raw") expect(codeOf(() => open(bytes, facts))).toBe("E_BLOB_ID");
      else expect(["E_BLOB_ZSTD", "E_BLOB_ID", "same"]).toContain(sameOrCode(bytes, facts, raw));
      bytes[bit >> 3]! ^= 1 << (bit & 7);
    }
    expect(openBlob(bytes, facts, keys)).toEqual(raw);
  });

  test("a blob cut short or grown is refused", () => {
    const { bytes, facts } = seal(Buffer.alloc(600, "compressible "), keys);
    for (let length = 0; length < bytes.length; length++) {
      expect(codeOf(() => openBlob(bytes.subarray(0, length), facts, keys))).toBe("E_BLOB_CRC");
      expect(codeOf(() => open(bytes.subarray(0, length), facts, keys))).toMatch(/^E_BLOB_(SEAL|ZSTD)$/);
    }
    const grown = Buffer.concat([bytes, Buffer.alloc(1)]);
    expect(codeOf(() => openBlob(grown, facts, keys))).toBe("E_BLOB_CRC");
  });

  test("a whole blob of another chunk is refused", () => {
    const [one, other] = [seal(Buffer.from("one chunk"), keys), seal(Buffer.from("one chump"), keys)];
    expect(codeOf(() => openBlob(other.bytes, { ...other.facts, id: one.facts.id }, keys))).toBe(
      keys === undefined ? "E_BLOB_ID" : "E_BLOB_SEAL",
    );
  });

  test("zstd is kept only when it saves a sixteenth", () => {
    // 4096 bytes of which `noise` cannot be compressed: the frame is about that long.
    const noisy = (noise: number): Buffer => {
      const digests = Array.from({ length: 128 }, (_, i) => hash("sha256", `${i}`, "buffer"));
      return Buffer.concat(digests).fill(0, noise);
    };
    expect(seal(noisy(3700), keys).facts.codec).toBe(Codec.ZSTD);
    const near = noisy(3900);
    expect(zstdCompressSync(near).length).toBeLessThan(4096);
    expect(seal(near, keys).facts.codec).toBe(Codec.RAW);
  });
});

function sameOrCode(bytes: Uint8Array, facts: BlobFacts, raw: Buffer): string {
  let opened: Uint8Array | undefined;
  const code = codeOf(() => (opened = open(bytes, facts)));
  return opened !== undefined && raw.equals(opened) ? "same" : code;
}

describe("sealing with keys", () => {
  const raw = Buffer.from("the same chunk, sealed twice");

  test("takes a new nonce each time", () => {
    expect(seal(raw, KEYS).bytes.subarray(0, 12)).not.toEqual(seal(raw, KEYS).bytes.subarray(0, 12));
  });

  test("a blob opens with its own keys only", () => {
    const { bytes, facts } = seal(raw, KEYS);
    expect(codeOf(() => openBlob(bytes, facts, OTHER_KEYS))).toBe("E_BLOB_SEAL");
    expect(codeOf(() => openBlob(bytes, facts))).toBe("E_BLOB_ID");
  });

  test("the id is checked with the id key too, after the seal", () => {
    const { bytes, facts } = seal(raw, KEYS);
    expect(codeOf(() => openBlob(bytes, facts, { ...KEYS, id: Buffer.alloc(32) }))).toBe("E_BLOB_ID");
  });

  test("a sealed blob too short for nonce and tag is refused", () => {
    const { facts } = seal(raw, KEYS);
    expect(codeOf(() => open(Buffer.alloc(SEAL_OVERHEAD - 1), facts, KEYS))).toBe("E_BLOB_SEAL");
  });
});

describe("unpacking is bounded by the length of the chunk", () => {
  const id = Buffer.alloc(32);

  test("a frame that unpacks to more is refused, however much more", () => {
    const bomb = zstdCompressSync(Buffer.alloc(64 * 1024 * 1024));
    expect(codeOf(() => open(bomb, { codec: 1, rawLength: 4096, id, crc32: 0 }))).toBe("E_BLOB_ZSTD");
  });

  test("a frame that unpacks to less is refused", () => {
    const frame = zstdCompressSync(Buffer.alloc(100));
    expect(codeOf(() => open(frame, { codec: 1, rawLength: 101, id, crc32: 0 }))).toBe("E_BLOB_ZSTD");
  });

  test("a frame that asks for a window past 8 MiB is refused", () => {
    const raw = Buffer.from("window");
    // RFC 8878: magic, no content size, a window of 2^windowLog, one last block of raw bytes.
    const frame = (windowLog: number): Buffer => {
      return Buffer.concat([
        Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0, (windowLog - 10) << 3, (6 << 3) | 1, 0, 0]),
        raw,
      ]);
    };
    const facts = { codec: 1, rawLength: raw.length, id: chunkId(raw), crc32: 0 } as const;
    expect(open(frame(23), facts)).toEqual(raw);
    expect(codeOf(() => open(frame(24), facts))).toBe("E_BLOB_ZSTD");
  });
});

describe("blobs made by other programs", () => {
  test.each(vectors.blobs)("$name", (vector) => {
    const keys = vector.sealed ? KEYS : undefined;
    const [raw, id, stored] = [hex(vector.raw), hex(vector.id), hex(vector.stored)];
    const facts = { codec: vector.codec as Codec, crc32: vector.crc32, rawLength: raw.length, id };
    expect(chunkId(raw, keys)).toEqual(id);
    expect(Buffer.from(openBlob(stored, facts, keys))).toEqual(raw);
  });
});

describe("ids", () => {
  test("equal bytes have equal ids wherever they lie, other bytes and other keys other ids", () => {
    fc.assert(
      fc.property(someChunk, someChunk, (a, b) => {
        for (const [, keys] of MODES) {
          expect(chunkId(onSharedMemory(a), keys)).toEqual(chunkId(a, keys));
          expect(chunkId(a, keys).equals(chunkId(b, keys))).toBe(Buffer.compare(a, b) === 0);
        }
        expect(chunkId(a)).not.toEqual(chunkId(a, KEYS));
      }),
    );
  });
});

describe("isZero", () => {
  test("agrees with a look at each byte, at any alignment and length", () => {
    const memory = new Uint8Array(new SharedArrayBuffer(300 * 1024));
    const range = fc.tuple(fc.nat(200), fc.oneof(fc.nat(300), fc.integer({ min: 65_000, max: 200_000 })));
    fc.assert(
      fc.property(range, fc.option(fc.nat(200_200)), ([offset, length], set) => {
        memory.fill(0);
        if (set !== null) memory[set] = 1 << (set % 8);
        const inside = set !== null && set >= offset && set < offset + length;
        expect(isZero(memory.subarray(offset, offset + length))).toBe(!inside);
      }),
    );
  });

  test.each([0, 65_535, 65_536, 131_071, 262_143])("sees one bit at byte %i of a chunk", (at) => {
    const chunk = Buffer.alloc(256 * 1024);
    expect(isZero(chunk)).toBe(true);
    chunk[at] = 0x80;
    expect(isZero(chunk)).toBe(false);
  });
});

describe("looksRandom", () => {
  const size = 256 * 1024;
  const random = randomBytes(size);

  test("random bytes do", () => expect(looksRandom(random)).toBe(true));

  test.each([
    ["zeros", Buffer.alloc(size)],
    ["text", Buffer.alloc(size, "The quick brown fox jumps over the lazy dog. ")],
    ["base64", Buffer.from(random.toString("base64"), "latin1").subarray(0, size)],
    ["half random, half zeros", Buffer.concat([random.subarray(0, size / 2), Buffer.alloc(size / 2)])],
    ["a program", readFileSync(process.execPath).subarray(8 * size, 9 * size)],
  ])("%s does not", (_name, bytes) => expect(looksRandom(bytes)).toBe(false));

  test("what it lets through is stored raw and restores", () => {
    const id = chunkId(random);
    const { bytes, codec, crc32 } = sealBlob(random, id);
    expect(codec).toBe(Codec.RAW);
    expect(Buffer.compare(openBlob(bytes, { codec, crc32, rawLength: size, id }), random)).toBe(0);
  });
});
