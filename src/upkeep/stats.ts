import type { Repository } from "../repository/config.ts";
import { loadGenerations } from "../repository/generations.ts";
import { Prefix } from "../repository/names.ts";

export interface ObjectTotals {
  readonly count: number;
  readonly bytes: number;
}

export interface RepositoryStats {
  readonly sources: number;
  readonly generations: number;
  /** Sum of the disks' sizes over all generations: what restoring each of them would give. */
  readonly logicalBytes: number;
  readonly packs: ObjectTotals;
  readonly layers: ObjectTotals;
  readonly index: ObjectTotals;
  readonly manifests: ObjectTotals;
  /** Over all runs, from the manifests. */
  readonly bytesRead: number;
  readonly bytesStored: number;
  readonly bytesPacked: number;
}

/** What a repository holds, by LIST of its objects and its manifests; no data is read. */
export async function repositoryStats(repository: Repository, signal: AbortSignal): Promise<RepositoryStats> {
  const manifests = await loadGenerations(repository, undefined, signal);
  const total = (pick: (index: (typeof manifests)[number]) => number): number =>
    manifests.reduce((sum, manifest) => sum + pick(manifest), 0);
  return {
    sources: new Set(manifests.map((manifest) => manifest.source)).size,
    generations: manifests.length,
    logicalBytes: total((manifest) => manifest.disks.reduce((sum, disk) => sum + disk.size, 0)),
    packs: await totals(repository, Prefix.packs, signal),
    layers: await totals(repository, Prefix.layers, signal),
    index: await totals(repository, Prefix.index, signal),
    manifests: await totals(repository, Prefix.generations, signal),
    bytesRead: total((manifest) => manifest.stats.bytesRead),
    bytesStored: total((manifest) => manifest.stats.bytesStored),
    bytesPacked: total((manifest) => manifest.stats.bytesPacked),
  };
}

async function totals(repository: Repository, prefix: string, signal: AbortSignal): Promise<ObjectTotals> {
  let count = 0;
  let bytes = 0;
  for await (const { size } of repository.store.list(prefix, signal)) {
    count++;
    bytes += size;
  }
  return { count, bytes };
}
