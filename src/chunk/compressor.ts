import { constants, createZstdCompress, zstdCompressSync, zstdDecompressSync } from "node:zlib";
import { reachInside } from "./zstd-inside.ts";

/** Level 1: every level above costs more time than it saves in bytes on the way to a store. */
const PARAMS = { [constants.ZSTD_c_compressionLevel]: 1 };

/** More than zstd adds to what it cannot compress (ZSTD_compressBound: 1/256 and a little). */
function roomFor(length: number): number {
  return length + (length >> 8) + 1024;
}

/** Compresses a chunk into one zstd frame that states its size. The result is good until the next call. */
export type Compress = (raw: Uint8Array) => Uint8Array;

/** By Node's public call, which makes a context and an output buffer each time. */
export const compressOnce: Compress = (raw) =>
  zstdCompressSync(raw, {
    params: PARAMS,
    pledgedSrcSize: raw.length,
    // The whole output in one step: otherwise it is gathered from 16 KiB pieces and copied once more.
    chunkSize: roomFor(raw.length),
  });

/**
 * A `Compress` with one context and one output buffer for all calls. Those of `compressOnce` make V8 collect garbage some
 * thirty times a GiB: a tenth of a backup's CPU.
 *
 * By the inside of Node's stream. A Node that is otherwise inside, or anything unexpected in a call, means `compressOnce`:
 * slower, never wrong.
 *
 * @param chunkSize most bytes of a chunk.
 */
export function reusingCompressor(chunkSize: number): Compress {
  const inside = reachInside(createZstdCompress({ params: PARAMS }));
  const output = Buffer.allocUnsafeSlow(roomFor(chunkSize));
  const compress: Compress = (raw) => {
    if (raw.length > chunkSize) return compressOnce(raw);
    // All of the input at once, and its end: one frame with its size, as if the context were new.
    const length = inside.write(constants.ZSTD_e_end, raw, output);
    return length === undefined ? compressOnce(raw) : output.subarray(0, length);
  };
  return worksTwice(compress) ? compress : compressOnce;
}

/** Two different inputs, the second with a context that was used before. */
function worksTwice(compress: Compress): boolean {
  try {
    return ["one and one and one", "two and two"].every((text) => {
      const raw = Buffer.from(text);
      return zstdDecompressSync(compress(raw)).equals(raw);
    });
  } catch {
    return false;
  }
}
