import type { ChunkRun } from "./grid.ts";

/** A contiguous run of chunks that goes through the pipeline as one item. */
export type Batch = ChunkRun;

/**
 * Cuts runs of data chunks into pieces of at most `chunksMax`; zero runs pass whole, since nobody reads them.
 */
export async function* batches(
  runs: AsyncIterable<ChunkRun>,
  chunksMax: number,
): AsyncGenerator<Batch, void> {
  for await (const run of runs) {
    if (run.state === "zero") {
      yield run;
      continue;
    }
    for (let first = run.first; first < run.first + run.count; first += chunksMax) {
      yield { state: "data", first, count: Math.min(chunksMax, run.first + run.count - first) };
    }
  }
}
