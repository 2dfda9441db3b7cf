import type { Extent, Range } from "../disk/disk.ts";

interface Chunks {
  readonly first: number;
  /** Infinity: to the end of the disk. */
  readonly count: number;
}

/**
 * Chunks that a run records whatever the parent or a bitmap says: the tail of a disk whose size changed (R9), and
 * chunks whose stored copy was found damaged (R12).
 */
export class ForcedChunks {
  readonly #runs: readonly Chunks[];
  readonly #chunkSize: number;

  /** @param runs in any order; may touch, not overlap. */
  constructor(runs: readonly Chunks[], chunkSize: number) {
    this.#runs = runs.toSorted((a, b) => a.first - b.first);
    this.#chunkSize = chunkSize;
  }

  has(chunk: number): boolean {
    const run = this.#firstEndingAfter(chunk);
    return run !== undefined && run.first <= chunk;
  }

  /** The next chunk after `chunk` where `has` may answer otherwise; Infinity when there is none. */
  nextChange(chunk: number): number {
    const run = this.#firstEndingAfter(chunk);
    if (run === undefined) return Infinity;
    return run.first > chunk ? run.first : run.first + run.count;
  }

  /** The extents, where `unchanged` has become `data` in forced chunks. */
  async *overlay(extents: AsyncIterable<Extent>): AsyncGenerator<Extent, void> {
    for await (const extent of extents) {
      if (extent.state === "unchanged") yield* this.#cut(extent);
      else yield extent;
    }
  }

  *#cut({ offset, length }: Range): Generator<Extent, void> {
    const end = offset + length;
    for (let at = offset; at < end;) {
      const chunk = Math.floor(at / this.#chunkSize);
      const next = Math.min(this.nextChange(chunk) * this.#chunkSize, end);
      yield { offset: at, length: next - at, state: this.has(chunk) ? "data" : "unchanged" };
      at = next;
    }
  }

  #firstEndingAfter(chunk: number): Chunks | undefined {
    let [low, high] = [0, this.#runs.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      const run = this.#runs[middle]!;
      if (run.first + run.count > chunk) high = middle;
      else low = middle + 1;
    }
    return this.#runs[low];
  }
}
