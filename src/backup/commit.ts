import { commitGeneration, latestGeneration } from "../repository/generations.ts";
import { storeStack } from "../repository/layer-merge.ts";
import type { Lease } from "../repository/leases.ts";
import type { Manifest, ManifestDisk, StoredManifest } from "../repository/manifest.ts";
import { AppError } from "../errors.ts";
import { packKey } from "../repository/names.ts";
import { extendLocks } from "../repository/object-lock.ts";
import type { PackRef } from "../repository/pack-directory.ts";
import { addStats } from "./counts.ts";
import type { Copied, GenerationRun } from "./generation.ts";
import { requestsOf, type BackupReport, type RunStats } from "./request.ts";

/** Identifies a run, and keeps its beginning. */
export interface RunIdentity {
  /** UUIDv7, of the store's time. */
  readonly id: string;
  readonly lease: Lease;
  /** By the store's clock. */
  readonly startedAt: string;
  /** By `performance.now`. */
  readonly startedMs: number;
}

/**
 * Makes copied disks a generation: layers and index first, then, if the lease still holds, the manifest.
 *
 * @param id of the generation, from `nextGeneration`.
 * @throws AppError E_LEASE_LOST, E_OVERTAKEN (locked), E_COMMIT_UNKNOWN (unavailable), and those of the store.
 */
export async function commit(
  generation: GenerationRun,
  id: string,
  parent: StoredManifest | undefined,
  copied: Copied,
): Promise<BackupReport> {
  const { request, identity, open, frozenAt, index, run } = generation;
  const { repository, source } = request;
  const { signal } = run;
  await extendReused(generation, copied);
  const disks: ManifestDisk[] = [];
  for (const disk of copied.disks) disks.push(await storeDisk(generation, disk, copied));
  await index.flush(signal);
  const newest = await latestGeneration(repository, source, signal);
  if (newest !== undefined && newest.generation >= id) throw overtaken(source, newest);
  await identity.lease.check(signal);
  const { kind, reason } = overall(copied);
  const stats = statsOf(generation, copied, disks, parent);
  const committedAt = await repository.store.now(signal);
  const manifest: Manifest = {
    format: 1,
    repository: repository.config.repository,
    generation: id,
    source,
    run: identity.id,
    parent: parent === undefined ? null : { generation: parent.generation, digest: parent.digest },
    sequence: (newest?.sequence ?? 0) + 1,
    kind,
    reason,
    startedAt: identity.startedAt,
    frozenAt: frozenAt.toISOString(),
    committedAt: committedAt.toISOString(),
    consistency: open.consistency,
    tags: request.tags,
    disks,
    stats,
    writer: request.writer,
  };
  await commitGeneration(repository, manifest, signal);
  return { manifest, stats: { ...stats, requests: requestsOf(request) }, guest: open.guest };
}

async function storeDisk(
  { request, open, run }: GenerationRun,
  { name, size, plan, layer, stats }: Copied["disks"][number],
  { refs }: Copied,
): Promise<ManifestDisk> {
  const { repository } = request;
  const bitmap = open.bitmaps?.get(name);
  const packRef = (pack: string): PackRef => needed(refs.get(pack), pack);
  const parent =
    plan.parentDisk === undefined ? undefined : { size: plan.parentDisk.size, layers: plan.base };
  return {
    name,
    size,
    chunkSize: repository.config.chunkSize,
    kind: plan.kind,
    reason: plan.reason,
    layers: await storeStack(repository, layer, packRef, parent, run.signal),
    ...(bitmap !== undefined && { bitmap }),
    counts: stats,
  };
}

/** What others stored is locked for as long as what this run stored, where these credentials may do that. */
async function extendReused({ request, run }: GenerationRun, { reused }: Copied): Promise<void> {
  try {
    await extendLocks(request.repository, [...reused].map(packKey), run.signal);
  } catch (error) {
    if (!(error instanceof AppError) || error.kind !== "credentials") throw error;
    request.warn(`The locks of packs that are used again could not be extended: ${error.message}`);
  }
}

function needed<T>(ref: T | undefined, pack: string): T {
  if (ref === undefined)
    throw new AppError("bug", "E_PACK_OPEN", `Pack ${pack} is named before it is complete`);
  return ref;
}

function overtaken(source: string, newest: StoredManifest): AppError {
  const message = `Another run committed generation ${newest.generation} of ${source} meanwhile; run this one again`;
  return new AppError("locked", "E_OVERTAKEN", message, { source, generation: newest.generation });
}

/** The generation goes by its costliest disk. */
function overall({ disks }: Copied): Pick<Manifest, "kind" | "reason"> {
  for (const kind of ["full", "rescan"] as const) {
    const disk = disks.find(({ plan }) => plan.kind === kind);
    if (disk === undefined) continue;
    const all = disks.every(({ plan }) => plan.kind === kind);
    return { kind, reason: all ? disk.plan.reason : `${disk.name}: ${disk.plan.reason}` };
  }
  return disks[0]!.plan;
}

function statsOf(
  { request, identity }: GenerationRun,
  copied: Copied,
  disks: readonly ManifestDisk[],
  parent: StoredManifest | undefined,
): RunStats {
  const old = new Set(parent?.disks.flatMap((disk) => disk.layers.map(({ layer }) => layer)));
  const layers = disks.flatMap((disk) => disk.layers).filter(({ layer }) => !old.has(layer));
  const layerBytes = layers.reduce((sum, { storedBytes }) => sum + storedBytes, 0);
  return {
    ...addStats(copied.disks.map(({ stats }) => stats)),
    seconds: (performance.now() - identity.startedMs) / 1000,
    // a directory is stored in its pack and in an index object
    metadataBytes: layerBytes + 2 * copied.directoryBytes,
    requests: requestsOf(request),
    peakRssBytes: request.peakRssBytes(),
  };
}
