import { crc32 } from "node:zlib";
import { KiB, MiB } from "../../bytes/size.ts";
import { AppError } from "../../errors.ts";
import { packKey } from "../../repository/names.ts";
import {
  CHECKSUM_SPAN,
  checkPackHeader,
  checkPackTrailer,
  decodePackEnd,
  PACK_END_SIZE,
  PACK_HEADER_SIZE,
  type PackFrame,
} from "../../repository/pack.ts";
import type { ObjectStore } from "../../store/store.ts";

/** Holds the trailer of the largest pack: 1,024 checksums and the end. */
const TAIL_SIZE = 8 * KiB;

/** Bytes of one GET; a whole number of spans. */
const READ_SIZE = 4 * MiB;

/** Memory that `scrubPack` needs; for one call at a time. */
export function scrubBuffer(): Buffer {
  return Buffer.allocUnsafe(READ_SIZE);
}

/**
 * Checks every byte of a pack against what stands in it in the clear: the CRC-32 of each MiB, and of those themselves.
 *
 * @param sealed whether the repository is encrypted.
 * @param buffer from `scrubBuffer`.
 * @returns bytes read.
 * @throws AppError E_PACK_TRAILER, E_PACK_HEADER, E_PACK_CHECKSUM, E_OBJECT_SIZE (corrupt), E_NO_OBJECT (notFound).
 */
export async function scrubPack(
  store: ObjectStore,
  pack: string,
  sealed: boolean,
  buffer: Buffer,
  signal: AbortSignal,
): Promise<number> {
  const { frame, checksums } = await readFrame(store, pack, sealed, signal);
  const bad: number[] = [];
  for (let offset = 0; offset < frame.trailerOffset; offset += READ_SIZE) {
    const bytes = buffer.subarray(0, Math.min(READ_SIZE, frame.trailerOffset - offset));
    await store.getRange(packKey(pack), offset, bytes, signal);
    if (offset === 0) checkPackHeader(bytes.subarray(0, PACK_HEADER_SIZE), sealed, pack);
    for (let at = 0; at < bytes.length; at += CHECKSUM_SPAN) {
      const span = (offset + at) / CHECKSUM_SPAN;
      if (crc32(bytes.subarray(at, at + CHECKSUM_SPAN)) !== checksums[span]) bad.push(span);
    }
  }
  if (bad.length > 0) throw checksumError(pack, bad, frame);
  return frame.objectSize;
}

async function readFrame(
  store: ObjectStore,
  pack: string,
  sealed: boolean,
  signal: AbortSignal,
): Promise<{ frame: PackFrame; checksums: Uint32Array }> {
  const tail = await store.getTail(packKey(pack), TAIL_SIZE, signal);
  const frame = decodePackEnd(tail.bytes.subarray(-PACK_END_SIZE), tail.size, pack);
  const trailer = tail.bytes.subarray(tail.bytes.length - (frame.objectSize - frame.trailerOffset));
  const checksums = checkPackTrailer(trailer, frame, pack);
  if (frame.sealed === sealed) return { frame, checksums };
  const message = `The pack ${pack} is sealed, or not, otherwise than the repository says`;
  throw new AppError("corrupt", "E_PACK_TRAILER", message, { pack });
}

function checksumError(pack: string, spans: readonly number[], { trailerOffset }: PackFrame): AppError {
  const first = spans[0]! * CHECKSUM_SPAN;
  const last = Math.min(first + CHECKSUM_SPAN, trailerOffset) - 1;
  const more = spans.length === 1 ? "" : ` and in ${spans.length - 1} more places`;
  const message = `The pack ${pack} is damaged somewhere in its bytes ${first}-${last}${more}`;
  return new AppError("corrupt", "E_PACK_CHECKSUM", message, { pack, first, last, places: spans.length });
}
