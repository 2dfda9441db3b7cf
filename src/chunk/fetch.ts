import { chunkLength } from "./grid.ts";
import type { Slab, SlabPool } from "./slabs.ts";
import type { ChunkWorkers, Identity, Piece } from "./workers.ts";
import type { DiskSource } from "../disk/disk.ts";
import type { Batch } from "./batches.ts";

/** A batch whose bytes lie in a slab, front to back, and whose chunks are identified. */
export interface FetchedData {
  readonly batch: Batch;
  readonly slab: Slab;
  readonly pieces: readonly Piece[];
  /** One for each chunk of the batch. */
  readonly identities: readonly Identity[];
}

/** A run of chunks that the source says is zero: nothing was read. */
export interface FetchedZeros {
  readonly batch: Batch;
  readonly slab: undefined;
}

export type Fetched = FetchedData | FetchedZeros;

/**
 * Reads a batch into a slab and has the workers look at it. The slab passes to the caller with the result.
 *
 * @param disk its size decides how long the last chunk is.
 */
export async function fetchBatch(
  batch: Batch,
  disk: Pick<DiskSource, "size" | "read">,
  chunkSize: number,
  slabs: SlabPool,
  workers: ChunkWorkers,
  signal: AbortSignal,
): Promise<Fetched> {
  if (batch.state === "zero") return { batch, slab: undefined };
  const slab = await slabs.take(signal);
  try {
    const pieces = piecesOf(batch, disk.size, chunkSize);
    const last = pieces.at(-1)!;
    await disk.read(batch.first * chunkSize, slab.bytes.subarray(0, last.offset + last.length), signal);
    return { batch, slab, pieces, identities: await workers.identify(slab, pieces) };
  } catch (error) {
    slab.release();
    throw error;
  }
}

/** Where each chunk of the batch lies in a slab that holds the batch from its start. */
function piecesOf(batch: Batch, diskSize: number, chunkSize: number): Piece[] {
  return Array.from({ length: batch.count }, (_, index) => ({
    offset: index * chunkSize,
    length: chunkLength(batch.first + index, diskSize, chunkSize),
  }));
}
