import type { BackupReport, BackupRequest, DryRun } from "../backup/request.ts";
import { dryRun, runBackup } from "../backup/run.ts";
import { AppError, messageOf } from "../errors.ts";
import { RUN_GRACE_MS } from "../repository/pins.ts";
import { forgetAll } from "../upkeep/forget-all.ts";
import { planByPolicy, type SourcePlan } from "../upkeep/plan-forget.ts";
import { connectorOf, wishOf } from "./connect-source.ts";
import { Hooks, type HookFacts } from "./hooks.ts";
import { withoutPasswords, type OpenJob } from "./job.ts";
import type { JobObserver } from "./observer.ts";
import { retentionRules } from "./retention-rules.ts";

export type SourceStep = "before" | "backup" | "forget" | "after";

/** What became of one source of a job. */
export interface SourceOutcome {
  readonly job: string;
  readonly source: string;
  readonly seconds: number;
  /** What was the matter, and where it was; undefined when all went well. A backup may have been made all the same. */
  readonly failure: { readonly step: SourceStep; readonly error: unknown } | undefined;
  /** Undefined when none was made. */
  readonly report: BackupReport | undefined;
  /** What retention did, when the job has rules and the backup went well. */
  readonly retention: SourcePlan | undefined;
}

/**
 * Runs one source of a job: hook, backup, retention, hook.
 *
 * After a failed backup nothing is forgotten. A failure is told to the job's hook, and in the outcome.
 *
 * @param source one of the job's. @param signal stops it: what was begun is undone, and the outcome says so.
 * @returns also when it failed; throws nothing.
 */
export async function runSource(
  job: OpenJob,
  source: string,
  { signal, observer }: { readonly signal: AbortSignal; readonly observer: JobObserver },
): Promise<SourceOutcome> {
  const startedMs = performance.now();
  const hooks = new Hooks(job.entry.hooks, withoutPasswords(job.file, job.runner.environment));
  let step: SourceStep = "before";
  let report: BackupReport | undefined;
  let retention: SourcePlan | undefined;
  const facts = (error?: unknown): HookFacts => ({
    job: job.name,
    source,
    step: step === "before" ? "backup" : step,
    generation: report?.manifest.generation,
    error,
  });
  const outcome = (error?: unknown): SourceOutcome => ({
    job: job.name,
    source,
    seconds: (performance.now() - startedMs) / 1000,
    failure: error === undefined ? undefined : { step, error },
    report,
    retention,
  });
  try {
    await hooks.run("before", facts(), signal);
    step = "backup";
    const request = requestOf(job, source, observer);
    report = await withRun(job, signal, (run) => runBackup(request, run));
    step = "forget";
    retention = await withRun(job, signal, (run) => forgetBySource(job, source, observer, run));
    step = "after";
    await hooks.run("after", facts(), signal);
    return outcome();
  } catch (error) {
    await hooks.run("on_failure", facts(error), signal).catch((failure: unknown) => {
      observer.warn(messageOf(failure));
    });
    return outcome(error);
  }
}

/** What each disk of a source would do; nothing is written, and no hook is run. @throws as `dryRun`. */
export async function dryRunSource(
  job: OpenJob,
  source: string,
  { signal, observer }: { readonly signal: AbortSignal; readonly observer: JobObserver },
): Promise<DryRun[]> {
  return await withRun(job, signal, (run) => dryRun(requestOf(job, source, observer), run.signal));
}

function requestOf(job: OpenJob, source: string, observer: JobObserver): BackupRequest {
  const { session, runner, file } = job;
  const entry = file.sources[source]!;
  const warn = (message: string): void => observer.warn(`${source}: ${message}`);
  return {
    ...session,
    source,
    connect: connectorOf(wishOf(source, entry, warn), session.repository.config.repository),
    tags: entry.tags ?? {},
    dedup: { scope: entry.dedup ?? "repository", cacheDir: session.settings.cacheDir },
    holder: runner.holder,
    isGone: runner.isGone,
    writer: runner.writer,
    warn,
    progress: (state) => observer.backup(source, state),
    peakRssBytes: runner.peakRssBytes,
    requestsBefore: session.repository.store.requests(),
  };
}

/** What the job's rules say of a source. @throws the first damaged manifest's error, after the rest was done. */
export async function forgetBySource(
  job: OpenJob,
  source: string,
  observer: JobObserver,
  run: AbortController,
): Promise<SourcePlan | undefined> {
  const { entry, session, runner } = job;
  if (entry.retention === undefined) return undefined;
  const { policy, calendar } = retentionRules(entry.retention);
  const lookup = { graceMs: RUN_GRACE_MS, isGone: runner.isGone };
  const damaged: AppError[] = [];
  const { repository } = session;
  const onDamaged = (error: AppError): void => void damaged.push(error);
  const planned = await planByPolicy(repository, [source], policy, calendar, lookup, run.signal, onDamaged);
  const [done] = await forgetAll(repository, planned, lookup, observer, run);
  for (const error of damaged) observer.warn(error.message);
  if (damaged[0] !== undefined) throw damaged[0];
  return done;
}

/**
 * A run of its own, which fails alone: `signal` stops it, and so does the end of the job's requests, but it does not stop what
 * else goes by them.
 */
export async function withRun<T>(
  { spent }: Pick<OpenJob, "spent">,
  signal: AbortSignal,
  work: (run: AbortController) => Promise<T>,
): Promise<T> {
  const until = AbortSignal.any([signal, spent]);
  until.throwIfAborted();
  const run = new AbortController();
  const stop = (): void => run.abort(until.reason);
  until.addEventListener("abort", stop, { once: true });
  try {
    return await work(run);
  } finally {
    until.removeEventListener("abort", stop);
  }
}
