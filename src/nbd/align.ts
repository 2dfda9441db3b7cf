import type { BlockSize, Range } from "../disk/disk.ts";

/**
 * Most bytes in one read or write, whatever the server allows. QEMU's server takes half as much CPU again for the same
 * bytes in requests of 1 MiB, because it allocates a buffer for each.
 */
export const PAYLOAD_MAX = 256 * 1024;

/** A part of what was asked for, and the request that brings it. */
export interface Piece extends Range {
  /** Bytes of the request before the part that was asked for; not 0 only where the request had to begin earlier. */
  readonly skip: number;
  /** Bytes of the request that were asked for. */
  readonly take: number;
}

/**
 * Cuts a range into requests that honour the server's minimum and maximum (proto.md, "Size constraints").
 *
 * Where the range begins or ends inside a block, that block is a piece of its own, so that the rest needs no
 * copy. An export whose size is no multiple of its minimum has a last block that can only be asked for as short
 * as it is; a server that minds that answers EINVAL, and then nobody can read it.
 *
 * @param size of the export, bytes; the range lies within.
 */
export function alignedPieces(range: Range, blockSize: BlockSize, size: number): Piece[] {
  const { minimum } = blockSize;
  const end = range.offset + range.length;
  const longest = Math.max(minimum, floorTo(Math.min(blockSize.maximum, PAYLOAD_MAX), minimum));
  const pieces: Piece[] = [];
  for (let at = range.offset; at < end;) {
    const block = floorTo(at, minimum);
    const blockEnd = Math.min(block + minimum, size);
    if (block < at || blockEnd > end) {
      const take = Math.min(blockEnd, end) - at;
      pieces.push({ offset: block, length: blockEnd - block, skip: at - block, take });
      at += take;
      continue;
    }
    const wholeEnd = floorTo(end, minimum);
    const length = wholeEnd > at ? Math.min(longest, wholeEnd - at) : end - at;
    pieces.push({ offset: at, length, skip: 0, take: length });
    at += length;
  }
  return pieces;
}

/** The range widened to whole blocks, but for the end of the export. */
export function widen(range: Range, minimum: number, size: number): Range {
  const offset = floorTo(range.offset, minimum);
  const end = Math.min(size, Math.ceil((range.offset + range.length) / minimum) * minimum);
  return { offset, length: end - offset };
}

/** True when the request carries more than was asked for, so that its data needs a buffer of its own. */
export function isPartial(piece: Piece): boolean {
  return piece.take < piece.length;
}

function floorTo(value: number, unit: number): number {
  return Math.floor(value / unit) * unit;
}
