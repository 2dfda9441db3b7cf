import { MiB } from "../bytes/size.ts";
import { SlabPool, slabBytes } from "../chunk/slabs.ts";
import { AppError, hasCode, messageOf } from "../errors.ts";
import { nextGenerationTime } from "../repository/clock.ts";
import { readCondemned } from "../repository/condemned.ts";
import { BadSlots } from "../repository/bad-slots.ts";
import type { DedupIndex } from "../repository/dedup.ts";
import { Forwards } from "../repository/forwards.ts";
import { IndexWriter } from "../repository/index-objects.ts";
import { DISK_SIZE_MAX, type StoredManifest } from "../repository/manifest.ts";
import { uuidv7 } from "../repository/names.ts";
import type { PackRef } from "../repository/pack-directory.ts";
import { PackWriter } from "../repository/pack-writer.ts";
import { commit, type RunIdentity } from "./commit.ts";
import { copyDisk, type CopiedDisk } from "./copy-disk.ts";
import { refOf, type RunChunks } from "./decide.ts";
import { planDisk, type DiskPlan, type PlanAfter } from "./plan.ts";
import type { Outcome, PointInTime } from "./point-in-time.ts";
import { repairCondemned } from "./repair.ts";
import type { BackupReport, BackupRequest } from "./request.ts";
import type { BackupSource } from "./source.ts";

/** What goes through the pipeline as one item, in raw bytes: large enough that messages to the workers are few. */
const BATCH_BYTES = MiB;
/** Batches being read and identified at once: as many requests as QEMU's NBD server works on. */
const READS = 16;
const SEALS = 6;
/** Part buffers of the packs being uploaded. */
const PARTS = 5;
/** What saving the index may take after a failure, milliseconds. */
const CLEANUP_MS = 15_000;

/** A run that has its lease and its point in time. */
export interface GenerationRun {
  readonly request: BackupRequest;
  readonly identity: RunIdentity;
  readonly open: PointInTime;
  /** By the store's clock: when the point in time was open. */
  readonly frozenAt: Date;
  readonly dedup: DedupIndex;
  readonly index: IndexWriter;
  readonly run: AbortController;
}

/** A disk whose chunks are stored. */
export interface CopiedPlan extends CopiedDisk {
  readonly name: string;
  readonly size: number;
  readonly plan: DiskPlan;
}

/** Copied disks, and every pack that their layers name. */
export interface Copied {
  readonly disks: readonly CopiedPlan[];
  readonly refs: ReadonlyMap<string, PackRef>;
  /** Those of them that other runs wrote. */
  readonly reused: ReadonlySet<string>;
  /** Directories of the packs that were written, bytes. */
  readonly directoryBytes: number;
}

/**
 * The run between its begin and its end record, in the order that keeps every promise (FORMAT.md, "Order of a
 * backup"): read; make sure that what was read was the point in time; layers and index; manifest; then look again
 * for what a prune condemned meanwhile; and only then let go of the point in time.
 */
export async function makeGeneration(
  request: BackupRequest,
  from: BackupSource,
  plan: PlanAfter,
  dedup: DedupIndex,
  identity: RunIdentity,
  run: AbortController,
): Promise<BackupReport> {
  const { repository, source } = request;
  const { signal } = run;
  await dedup.sync(signal);
  const condemned = await readCondemned(repository, signal);
  const id = await nextGeneration(request, [plan.parent, plan.latest], signal);
  const open = await from.open(plan, id, signal);
  open.lost?.catch((reason: unknown) => run.abort(reason));
  let outcome: Outcome = "failed";
  const index = new IndexWriter(repository, source, {
    onWritten: (key, packs) => dedup.packsListed(key, packs),
  });
  try {
    const frozenAt = await repository.store.now(signal);
    const generation: GenerationRun = { request, identity, open, frozenAt, dedup, index, run };
    checkDisks(open);
    // also what a run that died may not have looked for (R1)
    const bad = new BadSlots(dedup.damaged, condemned, new Forwards(repository));
    const plans = new Map<string, DiskPlan>();
    for (const [name, disk] of open.disks) {
      plans.set(name, await planDisk(plan.ways.get(name)!, disk, bad, repository, signal));
    }
    const copied = await copyDisks(generation, plans, condemned.packs);
    await open.assertAlive(signal);
    const report = await commit(generation, id, plan.parent, copied);
    outcome = "committed";
    return await repairCondemned(generation, report);
  } catch (error) {
    if (hasCode(error, "E_COMMIT_UNKNOWN")) outcome = "unknown";
    await listWhatIsStored(index, request);
    throw error;
  } finally {
    await open.close(outcome);
  }
}

/**
 * The id of the generation to come (R22). Known before its disks stand still, because the source's bitmap is named after
 * it.
 *
 * @param before generations that it must come after.
 */
export async function nextGeneration(
  { repository }: BackupRequest,
  before: readonly (StoredManifest | undefined)[],
  signal: AbortSignal,
): Promise<string> {
  const ids = before.flatMap((one) => (one === undefined ? [] : [one.generation]));
  return uuidv7(nextGenerationTime(await repository.store.now(signal), ids));
}

/**
 * Copies every disk into packs; when it resolves, all packs are complete. When it fails, nothing is running any more
 * and what is complete waits in `generation.index`.
 */
export async function copyDisks(
  generation: GenerationRun,
  plans: ReadonlyMap<string, DiskPlan>,
  avoid: ReadonlySet<string>,
): Promise<Copied> {
  const { request, open, dedup, index, run } = generation;
  const { repository, workers, directories } = request;
  const { chunkSize } = repository.config;
  const mine: RunChunks = { inFlight: new Map(), open: new Set(), avoid, refs: new Map(), reused: new Set() };
  let directoryBytes = 0;
  const packs = new PackWriter(
    repository,
    {
      partsInFlight: PARTS,
      onPack: async (pack) => {
        mine.refs.set(pack.pack, refOf(pack.directory));
        mine.open.delete(pack.pack);
        directoryBytes += pack.storedDirectory.length;
        dedup.addPack(pack);
        await index.add(pack, run.signal);
      },
    },
    run,
  );
  const batchChunks = Math.max(1, BATCH_BYTES / chunkSize);
  const slabs = new SlabPool(slabBytes(chunkSize, batchChunks), READS + SEALS + 2);
  const tools = {
    chunkSize,
    batchChunks,
    reads: READS,
    seals: SEALS,
    slabs,
    workers,
    packs,
    dedup,
    directories,
    mine,
  };
  const disks: CopiedPlan[] = [];
  try {
    for (const [name, disk] of open.disks) {
      const plan = plans.get(name)!;
      const copied = await copyDisk(disk, plan, tools, run, (stats, position) =>
        request.progress({ disk: name, position, size: disk.size, stats }),
      );
      disks.push({ ...copied, name, size: disk.size, plan });
    }
    await packs.finish();
  } catch (error) {
    run.abort(error);
    await packs.abort();
    throw run.signal.reason;
  }
  return { disks, refs: mine.refs, reused: mine.reused, directoryBytes };
}

/** After a failure: lists the complete packs, so that the next run finds them and uploads only the rest. */
async function listWhatIsStored(index: IndexWriter, request: BackupRequest): Promise<void> {
  await index.flush(AbortSignal.timeout(CLEANUP_MS)).catch((failure: unknown) => {
    request.warn(`What was stored until here could not be listed for the next run: ${messageOf(failure)}`);
  });
}

function checkDisks(open: PointInTime): void {
  for (const [name, { size }] of open.disks) {
    if (size >= 1 && size <= DISK_SIZE_MAX) continue;
    throw new AppError(
      "usage",
      "E_DISK_SIZE",
      `Disk ${name} has ${size} bytes; 1 byte to 64 TiB can be backed up`,
    );
  }
}
