import type { DiskSource } from "../disk/disk.ts";
import { AppError } from "../errors.ts";
import { BadSlots, badChunks } from "../repository/bad-slots.ts";
import { readCondemned, type Condemned } from "../repository/condemned.ts";
import { Forwards } from "../repository/forwards.ts";
import { mergeLayers } from "../repository/layer-merge.ts";
import { DiskMap } from "../repository/layer-stack.ts";
import type { LayerRef } from "../repository/layer-writer.ts";
import { latestGeneration } from "../repository/generations.ts";
import type { Manifest, ManifestDisk } from "../repository/manifest.ts";
import { commit } from "./commit.ts";
import { ForcedChunks } from "./forced.ts";
import { copyDisks, nextGeneration, type GenerationRun } from "./generation.ts";
import type { DiskPlan } from "./plan.ts";
import type { BackupReport } from "./request.ts";

/** Prunes that may get in the way of one backup, one after the other. */
const ROUNDS_MAX = 4;

/**
 * R1, the second half of the agreement with prune: it condemns, then looks for new generations; we commit, then look
 * for what was condemned. What the new generation uses of that is stored again, from the still open point in time,
 * and a repaired generation follows.
 *
 * @returns the report of the last generation: the one committed, or its repaired successor.
 */
export async function repairCondemned(
  generation: GenerationRun,
  committed: BackupReport,
): Promise<BackupReport> {
  const { request, run } = generation;
  const { repository } = request;
  let report = committed;
  for (let round = 0; round < ROUNDS_MAX; round++) {
    const condemned = await readCondemned(repository, run.signal);
    const plans = await repairPlans(generation, report.manifest, condemned);
    if (plans === undefined) return report;
    request.warn(
      `A prune condemned objects that generation ${report.manifest.generation} uses; storing them again`,
    );
    const repair = { ...generation, open: { ...generation.open, disks: quiet(generation.open.disks) } };
    const copied = await copyDisks(repair, plans, condemned.packs);
    const parent = await latestGeneration(repository, request.source, run.signal);
    if (parent === undefined) throw forgotten(report.manifest.generation);
    const id = await nextGeneration(request, [parent], run.signal);
    report = await commit(repair, id, parent, copied);
  }
  throw new AppError(
    "locked",
    "E_CONDEMNED",
    "Prunes condemn what this backup stores, again and again; run it when they are done",
  );
}

/** Without any generation there is none to repair, and nothing that the repaired one could stand on. */
function forgotten(generation: string): AppError {
  const message = `Generation ${generation} was forgotten before what a prune had condemned of it was stored again; run the backup again`;
  return new AppError("notFound", "E_NO_GENERATION", message, { generation });
}

/** What each disk must store again; undefined when the generation uses nothing that is condemned. */
async function repairPlans(
  { request, run }: GenerationRun,
  manifest: Manifest,
  condemned: Condemned,
): Promise<Map<string, DiskPlan> | undefined> {
  if (condemned.packs.size === 0 && condemned.layers.size === 0) return undefined;
  const { repository } = request;
  const bad = new BadSlots(new Map(), condemned, new Forwards(repository));
  const plans = new Map<string, DiskPlan>();
  let affected = false;
  for (const disk of manifest.disks) {
    const map = await DiskMap.open(repository, disk, run.signal);
    const forced: { first: number; count: number }[] = [];
    for await (const chunks of badChunks(map, bad, run.signal)) forced.push(chunks);
    const base = await soundLayers(request, disk, map, condemned, run.signal);
    affected ||= forced.length > 0 || base !== disk.layers;
    plans.set(disk.name, {
      kind: "incremental",
      reason: `repairs generation ${manifest.generation}: a prune condemned what it used`,
      parentDisk: disk,
      base,
      compareWith: undefined,
      forced: new ForcedChunks(forced, repository.config.chunkSize),
    });
  }
  return affected ? plans : undefined;
}

/** The disk's layers, or one new layer that says the same when some of them are condemned. */
async function soundLayers(
  { repository }: GenerationRun["request"],
  disk: ManifestDisk,
  map: DiskMap,
  condemned: Condemned,
  signal: AbortSignal,
): Promise<readonly LayerRef[]> {
  if (!disk.layers.some(({ layer }) => condemned.layers.has(layer))) return disk.layers;
  return [await mergeLayers(repository, map.layers, true, signal)];
}

/** The same disks, saying of themselves that nothing changed: only what is forced is read. */
function quiet(disks: ReadonlyMap<string, DiskSource>): Map<string, DiskSource> {
  return new Map(
    [...disks].map(([name, disk]): [string, DiskSource] => [
      name,
      {
        name: disk.name,
        size: disk.size,
        blockSize: disk.blockSize,
        read: (offset, into, signal) => disk.read(offset, into, signal),
        // eslint-disable-next-line @typescript-eslint/require-await
        extents: async function* (range) {
          yield { ...range, state: "unchanged" };
        },
        close: () => disk.close(),
      },
    ]),
  );
}
