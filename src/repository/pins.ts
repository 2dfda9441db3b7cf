import { hasCode } from "../errors.ts";
import type { Repository } from "./config.ts";
import { liveLeases, type LeaseOptions } from "./leases.ts";
import { uuidTime } from "./names.ts";
import { listRunNames, loadRunBegin, type RunBegin } from "./runs.ts";

/** A restore or serve that did not say that it ended counts as live for so long, milliseconds. */
export const RUN_GRACE_MS = 24 * 3_600_000;

/** A live run, and the generation that it stands on. */
export type Pin = RunBegin & { readonly pinned: string };

export interface PinLookup {
  /** How long a run without a lease counts as live, milliseconds. */
  readonly graceMs: number;
  /** True for a holder of a lease that surely runs no more. */
  readonly isGone: LeaseOptions["isGone"];
}

/**
 * The pins of a source's live runs (R6; FORMAT.md, "Runs"): of a backup that holds its lease, of a restore or serve that
 * has not ended and is younger than the grace.
 *
 * Costs and throws as `liveRuns`.
 */
export async function livePins(
  repository: Repository,
  source: string,
  lookup: PinLookup,
  signal: AbortSignal,
): Promise<Pin[]> {
  const runs = await liveRuns(repository, source, lookup, signal);
  return runs.flatMap((run) => (run.pinned === null ? [] : [{ ...run, pinned: run.pinned }]));
}

/**
 * The runs of a source that live, those without a pin too.
 *
 * Costs a LIST of the source's runs and one of its leases, and a GET for each run that has not ended and may live.
 *
 * @throws AppError E_RECORD and its like (corrupt) for a run that may live and does not say what it stands on.
 */
export async function liveRuns(
  repository: Repository,
  source: string,
  { graceMs, isGone }: PinLookup,
  signal: AbortSignal,
): Promise<RunBegin[]> {
  const { begun, ended } = await listRunNames(repository, source, signal);
  const open = begun.filter((run) => !ended.has(run));
  if (open.length === 0) return [];
  // after the runs: a lease is there from before a run's begin until after its end
  const leased = await liveLeases(repository, source, isGone, signal);
  const oldest = (await repository.store.now(signal)).getTime() - graceMs;
  const live: RunBegin[] = [];
  for (const run of open) {
    if (!leased.has(run) && (uuidTime(run) ?? Infinity) < oldest) continue; // dead, whatever it was
    const begin = await loadRunBegin(repository, source, run, signal).catch((error: unknown) => {
      if (hasCode(error, "E_NO_OBJECT")) return undefined; // cleared away since it was listed
      throw error;
    });
    if (begin === undefined) continue;
    const reads = begin.purpose !== "backup" && Date.parse(begin.startedAt) >= oldest;
    if (leased.has(run) || reads) live.push(begin);
  }
  return live;
}
