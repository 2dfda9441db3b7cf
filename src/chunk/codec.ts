import { createCipheriv, createDecipheriv, createHmac, hash, randomBytes } from "node:crypto";
import { crc32 } from "node:zlib";
import { AppError } from "../errors.ts";
import { type Compress, compressOnce } from "./compressor.ts";
import { type Decompress, decompressOnce } from "./decompressor.ts";
import type { ChunkKeys } from "./keys.ts";

/** How a blob's payload is kept; the values stand in pack directories. */
export const Codec = { RAW: 0, ZSTD: 1 } as const;
export type Codec = (typeof Codec)[keyof typeof Codec];

const NONCE_BYTES = 12;
const TAG_BYTES = 16;

/** Most bytes by which a blob can be longer than its chunk. */
export const SEAL_OVERHEAD = NONCE_BYTES + TAG_BYTES;

/** zstd has to save one byte in so many, or the chunk is stored raw and restores without unpacking. */
const MARGIN = 16;

const CIPHER = "aes-256-gcm";

/** Bytes encrypted in one go: of more, what the cipher gives back has left the processor's cache when it is copied. */
const CIPHER_STEP = 32 * 1024;

const ZEROS = Buffer.alloc(64 * 1024);

/** What was written by `sealInto`. */
export interface Sealed {
  /** Bytes of the blob as stored. */
  readonly length: number;
  readonly codec: Codec;
  /** CRC-32 of the blob as stored. */
  readonly crc32: number;
}

/** What a pack's directory says about a blob. */
export interface BlobFacts {
  readonly codec: Codec;
  readonly crc32: number;
  /** Bytes of the chunk. */
  readonly rawLength: number;
  /** 32 bytes. */
  readonly id: Uint8Array;
}

/** True when every byte is zero; also when there are none. */
export function isZero(bytes: Uint8Array): boolean {
  for (let at = 0; at < bytes.length; at += ZEROS.length) {
    const length = Math.min(ZEROS.length, bytes.length - at);
    // A view's `equals` is one memcmp, ten times as fast as any loop over words here.
    if (!ZEROS.subarray(0, length).equals(bytes.subarray(at, at + length))) return false;
  }
  return true;
}

/** The chunk's name, 32 bytes: SHA-256 of its bytes, or their HMAC-SHA-256 with the id key when there are keys. */
export function chunkId(bytes: Uint8Array, keys?: ChunkKeys): Buffer {
  return keys === undefined
    ? hash("sha256", bytes, "buffer")
    : createHmac("sha256", keys.id).update(bytes).digest();
}

/** Bytes looked at to guess whether compression pays, and how many stand together. */
const SAMPLE_BYTES = 4096;
const SAMPLE_PIECE = 64;

/** Bits a byte of a sample from which it passes for random: 4096 random bytes show about 7.95. */
const RANDOM_BITS = 7.9;

/**
 * Whether the bytes look random (encrypted, compressed already), by the entropy of an even sample. Costs a
 * twentieth of finding it out by compressing them; a wrong guess costs space, nothing else.
 */
export function looksRandom(bytes: Uint8Array): boolean {
  if (bytes.length < 4 * SAMPLE_BYTES) return false; // too short for the guess to pay
  const counts = new Uint16Array(256);
  const stride = Math.floor(bytes.length / (SAMPLE_BYTES / SAMPLE_PIECE));
  for (let start = 0, taken = 0; taken < SAMPLE_BYTES; start += stride, taken += SAMPLE_PIECE) {
    for (let at = start; at < start + SAMPLE_PIECE; at++) counts[bytes[at]!]!++;
  }
  let sum = 0;
  for (const count of counts) if (count > 1) sum += count * Math.log2(count);
  return Math.log2(SAMPLE_BYTES) - sum / SAMPLE_BYTES >= RANDOM_BITS;
}

/**
 * Writes a chunk's blob to the start of `into`: zstd or raw, sealed when there are keys.
 *
 * @param into at least `raw.length` bytes, and SEAL_OVERHEAD more with keys. It may overlap `raw`, which is then
 *   lost.
 * @param id what `chunkId` gave for `raw`.
 */
export function sealInto(
  into: Uint8Array,
  raw: Uint8Array,
  id: Uint8Array,
  keys?: ChunkKeys,
  compress: Compress = compressOnce,
): Sealed {
  const packed = looksRandom(raw) ? undefined : worthwhile(compress(raw), raw.length);
  const codec = packed === undefined ? Codec.RAW : Codec.ZSTD;
  const payload = packed ?? raw;
  const length = keys === undefined ? payload.length : payload.length + SEAL_OVERHEAD;
  if (keys === undefined) {
    if (!samePlace(into, payload)) into.set(payload);
  } else {
    encryptInto(into, payload, id, keys);
  }
  return { length, codec, crc32: crc32(into.subarray(0, length)) };
}

/** Nonce, ciphertext, tag. `into` may overlap the payload as `sealInto` says. */
function encryptInto(into: Uint8Array, payload: Uint8Array, id: Uint8Array, keys: ChunkKeys): void {
  const nonce = randomBytes(NONCE_BYTES);
  const cipher = createCipheriv(CIPHER, blobKey(id, keys), nonce, { authTagLength: TAG_BYTES });
  cipher.setAAD(id);
  const ahead = into.buffer === payload.buffer ? into.byteOffset + NONCE_BYTES - payload.byteOffset : 0;
  const step = ahead <= CIPHER_STEP ? CIPHER_STEP : payload.length;
  // a piece is written when the next one has been read: it may lie on the beginning of that
  let done = cipher.update(payload.subarray(0, step));
  let at = NONCE_BYTES;
  for (let from = step; from < payload.length; from += step) {
    const next = cipher.update(payload.subarray(from, from + step));
    into.set(done, at);
    at += done.length;
    done = next;
  }
  cipher.final();
  into.set(done, at);
  into.set(nonce);
  into.set(cipher.getAuthTag(), at + done.length);
}

/** Undefined when it saves too little. */
function worthwhile(packed: Uint8Array, rawLength: number): Uint8Array | undefined {
  return packed.length <= rawLength - rawLength / MARGIN ? packed : undefined;
}

/** As `sealInto`, into memory of its own. */
export function sealBlob(
  raw: Uint8Array,
  id: Uint8Array,
  keys?: ChunkKeys,
): { readonly bytes: Buffer; readonly codec: Codec; readonly crc32: number } {
  const into = Buffer.allocUnsafe(raw.length + SEAL_OVERHEAD);
  const { length, codec, crc32 } = sealInto(into, raw, id, keys);
  return { bytes: into.subarray(0, length), codec, crc32 };
}

/**
 * The chunk that a stored blob holds, checked at every step down to its id.
 *
 * @returns `rawLength` bytes; a view of `stored` when it is neither sealed nor compressed, else good until `decompress`
 *   is called again.
 * @throws AppError (corrupt) E_BLOB_CRC: not the bytes that were stored; E_BLOB_SEAL: they were, but not sealed
 *   with these keys for this id; E_BLOB_ZSTD: they do not unpack to `rawLength` bytes; E_BLOB_ID: they do, but
 *   it is not the chunk of that id.
 */
export function openBlob(
  stored: Uint8Array,
  facts: BlobFacts,
  keys?: ChunkKeys,
  decompress: Decompress = decompressOnce,
): Uint8Array {
  if (crc32(stored) !== facts.crc32) throw damaged("E_BLOB_CRC", "its checksum differs", facts);
  const payload = keys === undefined ? stored : unseal(stored, facts, keys);
  const raw = facts.codec === Codec.ZSTD ? unpack(payload, facts, decompress) : payload;
  if (raw.length === facts.rawLength && chunkId(raw, keys).equals(facts.id)) return raw;
  // No context that was used for another frame may make a good chunk look bad.
  if (decompress !== decompressOnce) return openBlob(stored, facts, keys);
  throw damaged("E_BLOB_ID", "it holds other bytes than its id says", facts);
}

function unseal(stored: Uint8Array, facts: BlobFacts, keys: ChunkKeys): Buffer {
  const bodyEnd = stored.length - TAG_BYTES;
  if (bodyEnd < NONCE_BYTES) throw damaged("E_BLOB_SEAL", "it is too short for a sealed blob", facts);
  const key = blobKey(facts.id, keys);
  const nonce = stored.subarray(0, NONCE_BYTES);
  const decipher = createDecipheriv(CIPHER, key, nonce, { authTagLength: TAG_BYTES });
  decipher.setAAD(facts.id);
  decipher.setAuthTag(stored.subarray(bodyEnd));
  const body = decipher.update(stored.subarray(NONCE_BYTES, bodyEnd));
  try {
    decipher.final();
  } catch (cause) {
    throw damaged("E_BLOB_SEAL", "its seal does not fit its bytes, its id or the key", facts, cause);
  }
  return body;
}

function unpack(payload: Uint8Array, facts: BlobFacts, decompress: Decompress): Uint8Array {
  try {
    return decompress(payload, facts.rawLength);
  } catch (cause) {
    throw damaged("E_BLOB_ZSTD", `it does not unpack to ${facts.rawLength} bytes`, facts, cause);
  }
}

function blobKey(id: Uint8Array, keys: ChunkKeys): Buffer {
  return createHmac("sha256", keys.blob).update(id).digest();
}

function samePlace(a: Uint8Array, b: Uint8Array): boolean {
  return a.buffer === b.buffer && a.byteOffset === b.byteOffset;
}

function damaged(
  code: "E_BLOB_CRC" | "E_BLOB_SEAL" | "E_BLOB_ZSTD" | "E_BLOB_ID",
  why: string,
  facts: BlobFacts,
  cause?: unknown,
): AppError {
  const chunk = Buffer.from(facts.id).toString("hex");
  return new AppError("corrupt", code, `The blob of chunk ${chunk} is damaged: ${why}`, { chunk }, cause);
}
