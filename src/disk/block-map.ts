import type { Range } from "./disk.ts";
import { endOf, mergeNeighbours, sameDirt, type DirtyExtent } from "./extents.ts";
import { AppError } from "../errors.ts";

/**
 * One bit for each block of a disk, in memory: which blocks were written.
 *
 * Takes `size / blockSize / 8` bytes (2 MiB for a disk of 1 TiB and blocks of 64 KiB), of which the operating
 * system provides only what is touched.
 */
export class BlockMap {
  readonly #bits: Uint8Array;
  readonly #size: number;
  readonly #blockSize: number;

  /** @param size of the disk, bytes; the last block may be short. @param blockSize bytes, > 0. */
  constructor(size: number, blockSize: number) {
    this.#size = size;
    this.#blockSize = blockSize;
    this.#bits = new Uint8Array(Math.ceil(size / blockSize / 8));
  }

  /** Sets every block that the range touches. @throws AppError E_BLOCK_MAP (bug) past the disk's end. */
  mark(range: Range): void {
    if (endOf(range) > this.#size) {
      throw new AppError("bug", "E_BLOCK_MAP", `Marked ${endOf(range)} on a map of ${this.#size} bytes`);
    }
    if (range.length <= 0) return;
    const last = Math.floor((endOf(range) - 1) / this.#blockSize);
    for (let block = Math.floor(range.offset / this.#blockSize); block <= last; block++) {
      this.#bits[block >>> 3]! |= 1 << (block & 7);
    }
  }

  /** Forgets all marks. */
  clear(): void {
    this.#bits.fill(0);
  }

  /** Describes `range` completely, neighbours joined; the edges are the range's own, not those of blocks. */
  extents(range: Range): Generator<DirtyExtent> {
    return mergeNeighbours(this.#blocks(range), sameDirt);
  }

  *#blocks(range: Range): Generator<DirtyExtent> {
    const end = Math.min(endOf(range), this.#size);
    for (let offset = range.offset; offset < end;) {
      const block = Math.floor(offset / this.#blockSize);
      const byte = this.#bits[block >>> 3]!;
      // A byte of clean blocks is one step: the map of a large disk is mostly that.
      const blocks = byte === 0 ? 8 - (block & 7) : 1;
      const next = Math.min(end, (block + blocks) * this.#blockSize);
      yield { offset, length: next - offset, dirty: (byte & (1 << (block & 7))) !== 0 };
      offset = next;
    }
  }
}
