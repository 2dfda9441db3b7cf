import type { Extent, ExtentState } from "../disk/disk.ts";
import { AppError } from "../errors.ts";

/** Consecutive chunks of a disk that a backup has to look at; those unchanged are never mentioned. */
export interface ChunkRun {
  /** Number of the first chunk: its offset divided by the chunk size. */
  readonly first: number;
  /** Chunks, >= 1. The last chunk of the disk may be short. */
  readonly count: number;
  /** `data` must be read; `zero` reads as zeros throughout and is recorded without a read. */
  readonly state: "data" | "zero";
}

/** Chunks of a disk, the short one at its end included. @param diskSize bytes. @param chunkSize bytes, > 0. */
export function chunkCount(diskSize: number, chunkSize: number): number {
  return Math.ceil(diskSize / chunkSize);
}

/** Bytes in a chunk: the chunk size, or less for the disk's last chunk. @param chunk below `chunkCount`. */
export function chunkLength(chunk: number, diskSize: number, chunkSize: number): number {
  return Math.min(chunkSize, diskSize - chunk * chunkSize);
}

/** One bit per state, so that the states met inside a chunk add up. */
const BIT: Readonly<Record<ExtentState, number>> = { data: 1, zero: 2, unchanged: 4 };

/**
 * What a set of states makes of a whole chunk. Only a chunk that is zero in all its bytes is `zero`; one that
 * is part zero and part unchanged has to be read, for its other part is known to nobody here.
 */
function chunkState(bits: number): ChunkRun["state"] | undefined {
  if (bits === BIT.unchanged) return undefined;
  return bits === BIT.zero ? "zero" : "data";
}

/**
 * Widens a disk's extents to whole chunks.
 *
 * @param extents of the whole disk from 0 to `diskSize`: sorted, without gaps or overlap. Empty extents are
 *   passed over.
 * @param diskSize bytes.
 * @param chunkSize bytes, > 0.
 * @returns sorted; neighbours of equal state are one run, however long.
 * @throws AppError E_EXTENT_ORDER (bug) when the extents do not cover the disk exactly: a hole in them
 *   would silently pass for unchanged.
 */
export async function* chunkRuns(
  extents: AsyncIterable<Extent> | Iterable<Extent>,
  diskSize: number,
  chunkSize: number,
): AsyncGenerator<ChunkRun, void, undefined> {
  let run: ChunkRun | undefined;
  for await (const next of wholeChunks(extents, diskSize, chunkSize)) {
    if (run?.state === next.state && run.first + run.count === next.first) {
      run = { ...run, count: run.count + next.count };
      continue;
    }
    if (run !== undefined) yield run;
    run = next;
  }
  if (run !== undefined) yield run;
}

/** The runs in order, not merged yet. */
async function* wholeChunks(
  extents: AsyncIterable<Extent> | Iterable<Extent>,
  diskSize: number,
  chunkSize: number,
): AsyncGenerator<ChunkRun, void, undefined> {
  let at = 0; // bytes seen
  let bits = 0; // states met in the chunk that `at` lies in, before `at`
  for await (const { offset, length, state } of extents) {
    const end = offset + length;
    if (offset !== at || length < 0 || end > diskSize) throw outOfPlace(at, diskSize, offset, length);
    while (at < end) {
      const chunk = Math.floor(at / chunkSize);
      // Whole chunks inside one extent go as one run, so that a 64 TiB hole costs one step.
      const whole = bits === 0 ? Math.floor(end / chunkSize) - chunk : 0;
      const count = Math.max(whole, 1);
      const stop = Math.min((chunk + count) * chunkSize, diskSize);
      bits |= BIT[state];
      at = Math.min(stop, end);
      if (at < stop) break; // the chunk goes on in the next extent
      const become = chunkState(bits);
      bits = 0;
      if (become !== undefined) yield { first: chunk, count, state: become };
    }
  }
  if (at !== diskSize) throw outOfPlace(at, diskSize, diskSize, 0);
}

function outOfPlace(expected: number, diskSize: number, offset: number, length: number): AppError {
  return new AppError("bug", "E_EXTENT_ORDER", "The extents of a disk do not follow each other to its end", {
    expected,
    diskSize,
    offset,
    length,
  });
}
