import { AppError, hasCode } from "../errors.ts";
import { jobsOf, withJob, type Job, type Runner } from "../jobs/job.ts";
import type { JobObserver } from "../jobs/observer.ts";
import { runSource, type SourceOutcome } from "../jobs/run-source.ts";
import type { JobFile } from "../jobs/schema.ts";
import type { BackupOrder } from "../queue/orders.ts";
import { latestGeneration } from "../repository/generations.ts";

/**
 * What became of an order to back up a source:
 *
 * - `done`     there is a generation; what came after it may have failed, as the outcome says
 * - `already`  there was one before, as when a message comes twice
 * - `locked`   another run writes the source, or one that died did until a moment ago; later
 * - `failed`   there is no generation; also one that was stopped by the signal
 */
export type Fulfilment =
  | { readonly kind: "done"; readonly outcome: SourceOutcome }
  | { readonly kind: "already"; readonly generation: string }
  | { readonly kind: "locked" | "failed"; readonly error: unknown; readonly outcome?: SourceOutcome };

/**
 * Backs up what an order asks for, unless that has happened: the repository knows, whatever the queue says. That two runs
 * of a source never write at the same time is its lease's doing. It forgets nothing, whatever the job's retention says: that
 * is upkeep's, and who only may write could not.
 *
 * @returns also when it failed; throws nothing.
 */
export async function fulfil(
  order: BackupOrder,
  file: JobFile,
  runner: Runner,
  { signal, observer }: { readonly signal: AbortSignal; readonly observer: JobObserver },
): Promise<Fulfilment> {
  try {
    return await withJob(orderedJob(order, file), runner, signal, async (job): Promise<Fulfilment> => {
      const latest = await latestGeneration(job.session.repository, order.source, signal);
      if (latest !== undefined && Date.parse(latest.startedAt) >= Date.parse(order.scheduledAt)) {
        return { kind: "already", generation: latest.generation };
      }
      const outcome = await runSource(job, order.source, { signal, observer });
      if (outcome.report !== undefined) return { kind: "done", outcome };
      const error = outcome.failure?.error;
      return { kind: hasCode(error, "E_LOCKED") ? "locked" : "failed", error, outcome };
    });
  } catch (error) {
    return { kind: "failed", error };
  }
}

/** The job of an order, without its retention. @throws AppError E_NO_JOB, E_NOT_IN_JOB (usage). */
function orderedJob({ job: name, source }: BackupOrder, file: JobFile): Job {
  const [job] = jobsOf(file, [name]);
  if (job!.entry.sources.includes(source)) return { ...job!, entry: { ...job!.entry, retention: undefined } };
  const message = `Job ${name} has no source ${source}; there are ${job!.entry.sources.join(", ")}`;
  throw new AppError("usage", "E_NOT_IN_JOB", message, { job: name, source });
}

/** A holder of the lease that died is given up after two minutes; a failure may pass. Both are tried ever later. */
const FIRST_WAIT_SECONDS = 60;
const WAIT_MAX_SECONDS = 1800;

/**
 * How long a message is left alone before it is tried again. @param receives how often it was tried, from 1.
 * @returns seconds.
 */
export function waitBeforeNext(receives: number): number {
  return Math.min(FIRST_WAIT_SECONDS * 2 ** (Math.max(receives, 1) - 1), WAIT_MAX_SECONDS);
}
