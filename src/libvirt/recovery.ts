import { AppError, hasCode, messageOf } from "../errors.ts";
import { pause } from "../flow/retry.ts";
import { RunNames } from "../qemu/names.ts";
import { removeFiles } from "../qemu/recovery.ts";
import { findRuns, type FoundRun } from "../qemu/run-file.ts";
import { DomainAgent } from "./agent.ts";
import type { DomainHandle } from "./domain.ts";
import { backupJob, jobFacts } from "./jobs.ts";
import { runKey, tokenOfSocket } from "./names.ts";

/** How long a job that was asked to end may take, milliseconds. */
const GONE_MS = 30_000;
const GONE_STEP_MS = 20;

/**
 * How long a begin may take whose run is dead: for virsh to ask libvirt; and for libvirt, which waits 30 s for a domain
 * that somebody else has. Milliseconds.
 */
const LATE_VIRSH_MS = 3000;
const LATE_BEGIN_MS = 45_000;
const LATE_BEGIN_STEP_MS = 250;

/** How long a freeze that a dead run left may take to be undone. */
const THAW_MS = 5000;

/**
 * Takes away what dead runs left on a domain: their backup job, with it QEMU's exports and scratch, and their files;
 * lets a guest go on that stands because its scratch was full, and thaws one that is frozen. Checkpoints stay: only who
 * knows the repository can tell whether they are wanted. Once more does no harm.
 *
 * @param only token: this run alone, whether its process lives or not: for itself, and its guard.
 * @returns what there was, a line each, for people.
 * @throws AppError E_VM_BUSY (locked) when one of the runs lives; E_DOMAIN_BUSY (locked) when something else has the
 *   domain; as `Virsh.run`.
 */
export async function clearDomain(
  domain: DomainHandle,
  { token, scratchDir }: { readonly token?: string; readonly scratchDir: string },
  signal: AbortSignal,
): Promise<string[]> {
  const found = (await findRuns(scratchDir, runKey(domain.uuid))).filter((run) => run.sameMonitor);
  const runs = token === undefined ? found : found.filter((run) => run.token === token);
  if (token === undefined) refuseLiving(domain, runs);
  const done: string[] = [];
  for (const run of runs) done.push(await clearRun(domain, run, scratchDir, token === undefined, signal));
  if (token === undefined) {
    done.push(...(await endUnmarkedJob(domain, scratchDir, signal)));
    await refuseBusy(domain, signal);
  }
  return done;
}

/** A job that serves from our folder, where each run that lives has a file: of one that came to be after its run's end. */
async function endUnmarkedJob(
  domain: DomainHandle,
  scratchDir: string,
  signal: AbortSignal,
): Promise<string[]> {
  const socket = (await backupJob(domain, signal))?.socket;
  const token = socket === undefined ? undefined : tokenOfSocket(socket);
  if (token === undefined || new RunNames(token).socket(scratchDir) !== socket) return [];
  await endOwnJob(domain, token, signal);
  await resumeAfterError(domain, signal);
  await removeFiles(token, scratchDir);
  return [`run ${token}`];
}

/** The job first, without which nothing is in the way of a write that stopped the guest; files last: they tell of it. */
async function clearRun(
  domain: DomainHandle,
  { token, froze, beginning }: FoundRun,
  scratchDir: string,
  others: boolean,
  signal: AbortSignal,
): Promise<string> {
  const parts: string[] = [];
  const startedAt = performance.now();
  while (!(await endOwnJob(domain, token, signal)) && beginning) {
    const limit = (await isBusy(domain, signal)) ? LATE_BEGIN_MS : LATE_VIRSH_MS;
    if (performance.now() - startedAt >= limit) break;
    await pause(LATE_BEGIN_STEP_MS, signal);
  }
  if (await resumeAfterError(domain, signal)) parts.push("the guest, which stood still");
  if (froze && others) parts.push(await thawLeftover(domain, signal));
  await removeFiles(token, scratchDir);
  return `run ${token}${parts.length === 0 ? "" : ` (${parts.join(", ")})`}`;
}

/**
 * Ends the backup of a run, and waits until it has ended; never that of somebody else.
 *
 * @returns whether there was one. @throws as `Virsh.run`.
 */
export async function endOwnJob(domain: DomainHandle, token: string, signal: AbortSignal): Promise<boolean> {
  const isOurs = async (): Promise<boolean> => {
    const socket = (await backupJob(domain, signal))?.socket;
    return socket !== undefined && tokenOfSocket(socket) === token;
  };
  if (!(await isOurs())) return false;
  await domain.change("domjobabort").catch((error: unknown) => {
    if (!hasCode(error, "E_NO_BACKUP_JOB") && !hasCode(error, "E_DOMAIN_OFF")) throw error;
  });
  const until = performance.now() + GONE_MS;
  while (await isOurs()) {
    if (performance.now() >= until) {
      const message = `Libvirt does not end the backup of domain ${domain.name}`;
      throw new AppError("source", "E_LEFTOVER", message, { domain: domain.name });
    }
    await pause(GONE_STEP_MS, signal);
  }
  return true;
}

/**
 * Lets a guest go on that an I/O error stopped, once nothing of ours is in the way of its write; whose error it was cannot
 * be told any more, and a write that fails again stops it again.
 *
 * @returns whether it stood.
 */
export async function resumeAfterError(domain: DomainHandle, signal: AbortSignal): Promise<boolean> {
  const { state, why } = await domain.state(signal);
  if (state !== "paused" || why !== "I/O error") return false;
  await domain.change("resume");
  return true;
}

async function thawLeftover(domain: DomainHandle, signal: AbortSignal): Promise<string> {
  const agent = await DomainAgent.open(domain, THAW_MS, signal);
  try {
    await agent.thaw(signal);
    return "a freeze";
  } catch (error) {
    signal.throwIfAborted();
    return `a freeze, of which it is not known whether it is over: ${messageOf(error)}`;
  } finally {
    await agent.close();
  }
}

/** Something is at work on the domain, or holds its lock. */
async function isBusy(domain: DomainHandle, signal: AbortSignal): Promise<boolean> {
  return (await jobFacts(domain, signal)).active;
}

function refuseLiving(domain: DomainHandle, runs: readonly FoundRun[]): void {
  const living = runs.find(({ pid }) => pid !== undefined);
  if (living === undefined) return;
  const message = `Another backup of domain ${domain.name} is running (process ${living.pid!}); wait for it, or end it`;
  throw new AppError("locked", "E_VM_BUSY", message, { pid: living.pid, token: living.token });
}

/** @throws AppError E_DOMAIN_BUSY (locked). */
export async function refuseBusy(domain: DomainHandle, signal: AbortSignal): Promise<void> {
  const [job, busy] = await Promise.all([backupJob(domain, signal), isBusy(domain, signal)]);
  if (job === undefined && !busy) return;
  const ours = job?.socket !== undefined && tokenOfSocket(job.socket) !== undefined;
  const what =
    job === undefined ? "something" : ours ? "a backup of another scratch folder" : "another backup";
  const message =
    `Domain ${domain.name} is busy: libvirt runs ${what} on it${job?.socket === undefined ? "" : ` (${job.socket})`}; ` +
    `try again when it is over, or end it with: virsh domjobabort ${domain.name}`;
  throw new AppError("locked", "E_DOMAIN_BUSY", message, { domain: domain.name });
}
