import { crc32 } from "node:zlib";
import { hash } from "node:crypto";
import type { BlobEntry } from "../../src/repository/pack-writer.ts";

/** A blob as it would come from a chunk worker, with bytes that depend on `seed` only. Not a real zstd frame. */
export function testBlob(
  seed: number,
  storedLength: number,
  options: { readonly rawLength?: number; readonly encrypted?: boolean } = {},
): { readonly blob: Buffer; readonly entry: BlobEntry } {
  const blob = Buffer.alloc(storedLength);
  let state = (seed + 1) * 2654435761;
  for (let at = 0; at < storedLength; at++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    blob[at] = state >>> 24;
  }
  const asRaw = storedLength - (options.encrypted === true ? 28 : 0);
  const rawLength = options.rawLength ?? asRaw;
  const codec = rawLength === asRaw ? 0 : 1;
  const id = hash("sha256", `chunk ${seed}`, "buffer");
  return { blob, entry: { id, rawLength, codec, crc32: crc32(blob) } };
}
