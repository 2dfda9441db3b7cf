import { chunkCount, chunkRuns } from "../chunk/grid.ts";
import type { SlabPool } from "../chunk/slabs.ts";
import type { ChunkWorkers } from "../chunk/workers.ts";
import type { DiskSource } from "../disk/disk.ts";
import { mapOrdered } from "../flow/map-ordered.ts";
import type { DedupIndex } from "../repository/dedup.ts";
import { LayerWriter } from "../repository/layer-writer.ts";
import type { PackDirectories } from "../repository/pack-reader.ts";
import type { PackWriter } from "../repository/pack-writer.ts";
import { batches } from "../chunk/batches.ts";
import { DiskCounts, type ChunkStats } from "./counts.ts";
import { Decider, type RunChunks } from "./decide.ts";
import { fetchBatch } from "../chunk/fetch.ts";
import { ParentChunks } from "./parent-chunks.ts";
import { Placer } from "./place.ts";
import type { DiskPlan } from "./plan.ts";
import { sealBatch } from "./seal.ts";

/** What all disks of a run share. */
export interface CopyTools {
  readonly chunkSize: number;
  /** Chunks that go through the pipeline as one item. */
  readonly batchChunks: number;
  /** Batches being read and identified at once. */
  readonly reads: number;
  /** Batches being sealed at once. */
  readonly seals: number;
  readonly slabs: SlabPool;
  readonly workers: ChunkWorkers;
  readonly packs: PackWriter;
  readonly dedup: DedupIndex;
  readonly directories: PackDirectories;
  readonly mine: RunChunks;
}

export interface CopiedDisk {
  readonly layer: LayerWriter;
  readonly stats: ChunkStats;
}

/**
 * extents ─▶ batches ─▶ fetch ─▶ decide ─▶ seal ─▶ place
 *
 * The disk's chunks on their way into packs and a layer. Stages keep the order of the disk; `fetch` and `seal` run
 * several batches at once, `decide` and `place` one. Nothing is visible to readers before the manifest.
 *
 * @param progress told the statistics after each batch, and how far down the disk it reaches, in bytes.
 */
export async function copyDisk(
  disk: DiskSource,
  plan: DiskPlan,
  tools: CopyTools,
  run: AbortController,
  progress: (stats: ChunkStats, position: number) => void,
): Promise<CopiedDisk> {
  const { chunkSize, workers, slabs } = tools;
  const layer = new LayerWriter(disk.size, chunkSize);
  const counts = new DiskCounts(disk.size, chunkSize);
  const parent =
    plan.compareWith === undefined
      ? undefined
      : new ParentChunks(
          plan.compareWith,
          chunkCount(disk.size, chunkSize),
          plan.forced,
          tools.directories,
          run.signal,
        );
  const decider = new Decider(tools.dedup, tools.directories, parent, plan.forced, tools.mine);
  const placer = new Placer(tools.packs, layer, tools.dedup, tools.mine, plan.base.length > 0, counts);

  const extents = disk.extents({ offset: 0, length: disk.size }, run.signal);
  const runs = chunkRuns(plan.forced.overlay(extents), disk.size, chunkSize);
  const wanted = batches(runs, tools.batchChunks);
  const fetched = mapOrdered(wanted, tools.reads, run, (batch, signal) =>
    fetchBatch(batch, disk, chunkSize, slabs, workers, signal),
  );
  const decided = mapOrdered(fetched, 1, run, (batch, signal) => decider.decide(batch, signal));
  const sealed = mapOrdered(decided, tools.seals, run, (batch) => sealBatch(batch, workers));
  const placed = mapOrdered(sealed, 1, run, async (batch) => {
    await placer.place(batch);
    return batch.fetched.batch;
  });
  for await (const batch of placed) {
    progress(counts.stats, Math.min((batch.first + batch.count) * chunkSize, disk.size));
  }
  return { layer, stats: counts.stats };
}
