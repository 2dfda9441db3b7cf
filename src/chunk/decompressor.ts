import { constants, createZstdDecompress, zstdDecompressSync } from "node:zlib";
import { reachInside, type ZstdInside } from "./zstd-inside.ts";

/**
 * Memory that a zstd frame may ask for, as a power of two: 8 MiB, which RFC 8878 (3.1.1.1.2) wants every decoder to
 * grant and nothing we store needs.
 */
export const WINDOW_LOG_MAX = 23;

const PARAMS = { [constants.ZSTD_d_windowLogMax]: WINDOW_LOG_MAX };

/** Room beyond the expected end, by which a frame that is too long shows. */
const SPARE = 1024;

/**
 * Unpacks one zstd frame. The result is good until the next call.
 *
 * @param length bytes expected. @returns as many. @throws Error when the frame is damaged or holds another length.
 */
export type Decompress = (packed: Uint8Array, length: number) => Uint8Array;

/** By Node's public call, which makes a context and an output buffer each time. */
export const decompressOnce: Decompress = (packed, length) => {
  const raw = zstdDecompressSync(packed, {
    params: PARAMS,
    maxOutputLength: length,
    // With room to spare: an output that is exactly full has zlib ask for another buffer.
    chunkSize: length + SPARE,
  });
  if (raw.length !== length) throw new Error(`It unpacks to ${raw.length} bytes, not to ${length}`);
  return raw;
};

/**
 * A `Decompress` with one context and one output buffer for all calls: those of `decompressOnce` cost as much again as a
 * third of the unpacking, and make V8 collect garbage besides.
 *
 * By the same way as `reusingCompressor`. Whatever is not as expected, a damaged frame too, goes through `decompressOnce`,
 * which says what is wrong, and has the next call begin with a new context.
 *
 * @param chunkSize most bytes of a chunk.
 */
export function reusingDecompressor(chunkSize: number): Decompress {
  const output = Buffer.allocUnsafeSlow(chunkSize + SPARE);
  let inside: ZstdInside | undefined;
  return (packed, length) => {
    inside ??= reachInside(createZstdDecompress({ params: PARAMS }));
    const end = length <= chunkSize ? inside.write(constants.ZSTD_e_end, packed, output) : undefined;
    if (end === length) return output.subarray(0, length);
    inside.close();
    inside = undefined;
    return decompressOnce(packed, length);
  };
}
