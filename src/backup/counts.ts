import type { Verdict, ZeroRun } from "./decide.ts";

/**
 * What happened to the chunks of a disk, or of several; the `stats` of manifests and reports. A chunk that a run
 * looked at became one of four: zero, unchanged, deduplicated or stored. It was read, or said by the source to be zero.
 */
export interface ChunkStats {
  /** Raw bytes and chunks read from the source. */
  bytesRead: number;
  chunksRead: number;
  /** Recorded as zero: found in the data, or said by the source. */
  bytesZero: number;
  chunksZero: number;
  /** Read (or said to be zero) and equal to the parent's. */
  bytesUnchanged: number;
  chunksUnchanged: number;
  /** In the repository already. */
  bytesDeduplicated: number;
  chunksDeduplicated: number;
  /** New: raw bytes, and what they take as blobs. */
  bytesStored: number;
  bytesPacked: number;
  chunksStored: number;
}

export function emptyStats(): ChunkStats {
  return {
    bytesRead: 0,
    chunksRead: 0,
    bytesZero: 0,
    chunksZero: 0,
    bytesUnchanged: 0,
    chunksUnchanged: 0,
    bytesDeduplicated: 0,
    chunksDeduplicated: 0,
    bytesStored: 0,
    bytesPacked: 0,
    chunksStored: 0,
  };
}

/** Sums field by field. */
export function addStats(all: readonly ChunkStats[]): ChunkStats {
  const sum = emptyStats();
  for (const stats of all) for (const key of Object.keys(sum) as (keyof ChunkStats)[]) sum[key] += stats[key];
  return sum;
}

/** Counts one disk while its chunks are placed. */
export class DiskCounts {
  readonly stats: ChunkStats = emptyStats();
  readonly #chunkSize: number;
  readonly #diskSize: number;

  constructor(diskSize: number, chunkSize: number) {
    this.#diskSize = diskSize;
    this.#chunkSize = chunkSize;
  }

  /** A run of zeros that nobody had to read. */
  zeroRun(run: ZeroRun): void {
    const end = Math.min((run.first + run.count) * this.#chunkSize, this.#diskSize);
    const bytes = end - run.first * this.#chunkSize;
    if (run.unchanged) {
      this.stats.bytesUnchanged += bytes;
      this.stats.chunksUnchanged += run.count;
    } else {
      this.stats.bytesZero += bytes;
      this.stats.chunksZero += run.count;
    }
  }

  chunk(is: Verdict["is"], rawLength: number, storedLength: number): void {
    const { stats } = this;
    stats.bytesRead += rawLength;
    stats.chunksRead += 1;
    switch (is) {
      case "zero":
        stats.bytesZero += rawLength;
        stats.chunksZero += 1;
        return;
      case "unchanged":
        stats.bytesUnchanged += rawLength;
        stats.chunksUnchanged += 1;
        return;
      case "known":
      case "twin":
        stats.bytesDeduplicated += rawLength;
        stats.chunksDeduplicated += 1;
        return;
      case "new":
        stats.bytesStored += rawLength;
        stats.bytesPacked += storedLength;
        stats.chunksStored += 1;
    }
  }
}
