import { join } from "node:path";
import { messageOf } from "../errors.ts";
import { checkClock } from "../repository/clock.ts";
import { DedupIndex } from "../repository/dedup.ts";
import { acquireLease, DEFAULT_LEASE } from "../repository/leases.ts";
import { findGeneration, latestGeneration, loadGeneration } from "../repository/generations.ts";
import { uuidv7 } from "../repository/names.ts";
import { resolveGeneration } from "../repository/resolve-generation.ts";
import { beginRun, endingOf, endRun } from "../repository/runs.ts";
import type { RunIdentity } from "./commit.ts";
import { makeGeneration } from "./generation.ts";
import type { PlanAfter } from "./plan.ts";
import { requestsOf, type BackupReport, type BackupRequest, type DryRun } from "./request.ts";
import type { BackupSource } from "./source.ts";
import { abortStaleUploads } from "./stale-uploads.ts";

/** What a stopped run may still take to undo what it did, milliseconds. */
const CLEANUP_MS = 15_000;

/**
 * One backup: lease, begin record, generation, end record.
 *
 * Whatever happens, the lease is given back and the end of what was begun is recorded. Nothing is visible to readers before the
 * manifest, so a run that fails leaves only packs, which the next run finds and uses.
 */
export async function runBackup(request: BackupRequest, run: AbortController): Promise<BackupReport> {
  const { repository, source, holder, isGone } = request;
  const { store, config } = repository;
  const { signal } = run;
  const startedMs = performance.now();
  const now = await store.now(signal);
  checkClock(now, new Date());
  const id = uuidv7(now.getTime());
  const lease = await acquireLease(repository, source, id, { ...DEFAULT_LEASE, holder, isGone }, signal);
  const common = { format: 1, repository: config.repository, source, run: id } as const;
  const end = async (generation: string | null, failure: unknown): Promise<void> => {
    const cleanup = AbortSignal.timeout(CLEANUP_MS);
    const endedAt = (await store.now(cleanup)).toISOString();
    const seconds = (performance.now() - startedMs) / 1000;
    const record = {
      ...common,
      ...endingOf(failure),
      endedAt,
      generation,
      seconds,
      requests: requestsOf(request),
    };
    await endRun(repository, record, cleanup);
  };
  let begun = false;
  let from: BackupSource | undefined;
  try {
    from = await request.connect(id, "backup", signal);
    const plan = await planFrom(from, request, signal); // a request that cannot be: before anything is written
    const parent = plan.parent?.generation ?? null;
    const startedAt = now.toISOString();
    begun = true; // as soon as the record may be there
    await beginRun(
      repository,
      { ...common, purpose: "backup", startedAt, pinned: parent, host: holder.host, writer: request.writer },
      signal,
    );
    const report = await pinned(request, from, plan, { id, lease, startedAt, startedMs }, run);
    await end(report.manifest.generation, undefined).catch((error: unknown) =>
      request.warn(`The generation is stored, but the run's end could not be recorded: ${messageOf(error)}`),
    );
    return report;
  } catch (error) {
    if (begun) await end(null, error).catch(() => undefined); // the failure itself is what the user must hear
    throw error;
  } finally {
    await from?.close();
    await lease.release();
  }
}

/** What each disk would do; looks at the repository and the exports, writes nothing. */
export async function dryRun(request: BackupRequest, signal: AbortSignal): Promise<DryRun[]> {
  const from = await request.connect(uuidv7(Date.now()), "look", signal);
  try {
    const { ways } = await planFrom(from, request, signal);
    const sizes = await from.sizes(ways, signal);
    return [...ways].map(([name, { kind, reason }]) => ({ name, kind, reason, size: sizes.get(name)! }));
  } finally {
    await from.close();
  }
}

/**
 * The work under a begin record. The parent is looked up once more first: only now a collection that began before
 * the record was written cannot have missed the pin (R6).
 */
async function pinned(
  request: BackupRequest,
  from: BackupSource,
  plan: PlanAfter,
  identity: RunIdentity,
  run: AbortController,
): Promise<BackupReport> {
  const { repository, source } = request;
  const { parent } = plan;
  if (parent !== undefined) {
    await loadGeneration(repository, { source, generation: parent.generation }, run.signal, parent.digest);
  }
  await abortStaleUploads(repository, identity.id, run.signal).catch((error: unknown) => {
    run.signal.throwIfAborted();
    request.warn(`Uploads that an earlier run left behind could not be removed: ${messageOf(error)}`);
  });
  const dedup = await openDedup(request, run.signal);
  try {
    return await makeGeneration(request, from, plan, dedup, identity, run);
  } finally {
    dedup.close();
  }
}

/** One database a repository, whatever its location is called today. */
async function openDedup(request: BackupRequest, signal: AbortSignal): Promise<DedupIndex> {
  const { repository, source, dedup, warn } = request;
  const file = join(dedup.cacheDir, `${repository.config.repository}.sqlite`);
  return await DedupIndex.open({ file, repository, scope: dedup.scope, source, warn }, signal);
}

/** What each disk would do, by what there is. */
export async function planFrom(
  from: BackupSource,
  request: BackupRequest,
  signal: AbortSignal,
): Promise<PlanAfter> {
  const { repository, source } = request;
  const latest = await latestGeneration(repository, source, signal);
  const earlier = {
    latest,
    byId: (generation: string) => findGeneration(repository, { source, generation }, signal),
    resolve: (name: string) => resolveGeneration(repository, name, signal),
  };
  const plan = await from.plan(earlier, signal);
  return { ...plan, latest };
}
