import { messageOf } from "../errors.ts";
import { Hooks } from "./hooks.ts";
import { withJob, withoutPasswords, type Job, type OpenJob, type Runner } from "./job.ts";
import type { JobObserver } from "./observer.ts";
import { Rota } from "./rota.ts";
import { runSource, type SourceOutcome } from "./run-source.ts";
import { runUpkeep, type UpkeepOutcome, type UpkeepStep } from "./upkeep.ts";

/** Who hears of a job as it goes on; beside the words, each outcome as soon as there is one. */
export interface JobListener extends JobObserver {
  source(outcome: SourceOutcome): void;
  upkeep(outcome: UpkeepOutcome): void;
}

/** What became of a job. */
export interface JobOutcome {
  readonly job: string;
  readonly sources: readonly SourceOutcome[];
  readonly upkeep: readonly UpkeepOutcome[];
  /** Upkeep of the job whose time has not come. */
  readonly notDue: readonly UpkeepStep[];
  /** Sources that were not begun, because the job was stopped, or its repository could not be opened. */
  readonly notRun: readonly string[];
  /** Why the repository could not be opened; undefined when it could. */
  readonly error: unknown;
}

/**
 * Runs a job: its sources one after the other, whatever becomes of each, and then what is due of prune and verify.
 *
 * @returns also when something failed; throws nothing.
 */
export async function runJob(
  job: Job,
  runner: Runner,
  { signal, observer }: { readonly signal: AbortSignal; readonly observer: JobListener },
): Promise<JobOutcome> {
  const sources: SourceOutcome[] = [];
  const upkeep: UpkeepOutcome[] = [];
  const notDue: UpkeepStep[] = [];
  const outcome = (error?: unknown): JobOutcome => {
    const begun = new Set(sources.map(({ source }) => source));
    const notRun = job.entry.sources.filter((source) => !begun.has(source));
    return { job: job.name, sources, upkeep, notDue, notRun, error };
  };
  try {
    return await withJob(job, runner, signal, async (open) => {
      for (const source of job.entry.sources) {
        if (signal.aborted || open.spent.aborted) return outcome();
        const done = await runSource(open, source, { signal, observer });
        sources.push(done);
        observer.source(done);
      }
      for (const step of upkeepOf(job)) {
        if (signal.aborted || open.spent.aborted) return outcome();
        const done = await upkeepIfDue(open, step, { signal, observer });
        if (done === undefined) notDue.push(step);
        else upkeep.push(done);
      }
      return outcome();
    });
  } catch (error) {
    const hooks = new Hooks(job.entry.hooks, withoutPasswords(job.file, runner.environment));
    const facts = { job: job.name, source: "", step: "open", generation: undefined, error };
    await hooks.run("on_failure", facts, signal).catch((failure: unknown) => {
      observer.warn(messageOf(failure));
    });
    return outcome(error);
  }
}

/** What a job does beside its backups, in that order. */
export function upkeepOf({ entry }: Job): UpkeepStep[] {
  return (["prune", "verify"] as const).filter((step) => entry[step] !== undefined);
}

async function upkeepIfDue(
  job: OpenJob,
  step: UpkeepStep,
  options: { readonly signal: AbortSignal; readonly observer: JobListener },
): Promise<UpkeepOutcome | undefined> {
  const { observer } = options;
  const rota = new Rota(job);
  const beganMs = Date.now();
  if (!(await rota.isDue(step, job.entry[step]?.every))) return undefined;
  const done = await runUpkeep(job, step, options);
  observer.upkeep(done);
  if (done.error === undefined) {
    await rota.done(step, beganMs).catch((error: unknown) => {
      observer.warn(
        `The next run does the ${step} again, because its time could not be kept: ${messageOf(error)}`,
      );
    });
  }
  return done;
}
