import { messageOf } from "../errors.ts";
import { RUN_GRACE_MS } from "../repository/pins.ts";
import { DEFAULT_GRACE_MS } from "../upkeep/prune/grace.ts";
import type { PruneReport } from "../upkeep/prune/prune-report.ts";
import { prune } from "../upkeep/prune/prune.ts";
import { DEFAULT_REWRITE_LIMITS } from "../upkeep/prune/rewrite-limits.ts";
import type { VerifyReport } from "../upkeep/verify.ts";
import { throwIfAny, verifyAll } from "../upkeep/verify-all.ts";
import { Hooks } from "./hooks.ts";
import { withoutPasswords, type OpenJob } from "./job.ts";
import type { JobObserver } from "./observer.ts";
import { withRun } from "./run-source.ts";

export type UpkeepStep = "prune" | "verify";

/** What became of a job's prune or verify. */
export interface UpkeepOutcome {
  readonly job: string;
  readonly step: UpkeepStep;
  readonly seconds: number;
  readonly error: unknown;
  /** Of a verify that found problems too. */
  readonly report: PruneReport | VerifyReport | undefined;
}

export interface UpkeepOptions {
  readonly signal: AbortSignal;
  readonly observer: JobObserver;
  /** Goes on with a verify that was stopped before, instead of beginning anew. */
  readonly continued?: boolean;
}

/**
 * Runs a job's prune or verify, whether it is due or not.
 *
 * @returns also when it failed, which the job's hook is told; throws nothing. A verify that found problems failed.
 */
export async function runUpkeep(
  job: OpenJob,
  step: UpkeepStep,
  { signal, observer, continued = false }: UpkeepOptions,
): Promise<UpkeepOutcome> {
  const startedMs = performance.now();
  let report: PruneReport | VerifyReport | undefined;
  const outcome = (error?: unknown): UpkeepOutcome => {
    return { job: job.name, step, seconds: (performance.now() - startedMs) / 1000, error, report };
  };
  try {
    if (step === "prune") {
      report = await withRun(job, signal, (run) => pruneOf(job, observer, run));
    } else {
      const verified = await withRun(job, signal, (run) => verifyOf(job, observer, continued, run));
      report = verified;
      throwIfAny(verified, job.session.repository.store.location);
    }
    return outcome();
  } catch (error) {
    const hooks = new Hooks(job.entry.hooks, withoutPasswords(job.file, job.runner.environment));
    const facts = { job: job.name, source: "", step, generation: undefined, error };
    await hooks.run("on_failure", facts, signal).catch((failure: unknown) => {
      observer.warn(messageOf(failure));
    });
    return outcome(error);
  }
}

async function pruneOf(
  { entry, session, runner }: OpenJob,
  observer: JobObserver,
  run: AbortController,
): Promise<PruneReport> {
  const { grace, max_unused: maxUnused, max_repack_bytes: maxRepackBytes } = entry.prune ?? {};
  const options = {
    graceMs: grace ?? DEFAULT_GRACE_MS,
    dryRun: false,
    lookup: { graceMs: RUN_GRACE_MS, isGone: runner.isGone },
    holder: runner.holder,
    warn: (message: string) => observer.warn(message),
    rewrite: {
      maxUnused: maxUnused ?? DEFAULT_REWRITE_LIMITS.maxUnused,
      maxRepackBytes: maxRepackBytes ?? DEFAULT_REWRITE_LIMITS.maxRepackBytes,
    },
  };
  return await prune(session.repository, options, run);
}

async function verifyOf(
  { entry, session }: OpenJob,
  observer: JobObserver,
  continued: boolean,
  run: AbortController,
): Promise<VerifyReport> {
  const options = {
    readPercent: entry.verify?.percent ?? 0,
    continued,
    warn: (message: string) => observer.warn(message),
    progress: (done: number, total: number) => observer.verify(done, total),
  };
  return await verifyAll(options, session, run);
}
