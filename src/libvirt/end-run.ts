import { hasCode, messageOf } from "../errors.ts";
import type { Outcome } from "../qemu/end-run.ts";
import type { Guard } from "../qemu/guard/guard.ts";
import type { RunFile } from "../qemu/run-file.ts";
import { checkpointsOf, deleteCheckpoint } from "./checkpoints.ts";
import type { DomainHandle } from "./domain.ts";
import { generationCheckpoint } from "./names.ts";
import { staleCheckpoints } from "./parent.ts";
import { clearDomain } from "./recovery.ts";

/** How long taking down may take, in milliseconds. */
const END_MS = 180_000;

/** All that a backup has, as far as it came. */
export interface DomainRun {
  readonly domain: DomainHandle;
  readonly token: string;
  readonly plan: { readonly repository: string; readonly generation: string };
  /** Disks of the domain that are not backed up. */
  readonly others: readonly string[];
  readonly mark: RunFile;
  readonly guard: Pick<Guard, "finish"> | undefined;
  readonly scratchDir: string;
  warn(message: string): void;
}

/**
 * Ends the run's backup job, then removes the checkpoints that the outcome makes superfluous. What cannot be done is
 * left to the next run, with a warning. Never throws.
 */
export async function endDomainRun(run: DomainRun, outcome: Outcome): Promise<void> {
  const { domain, token, scratchDir, mark, guard, warn } = run;
  const signal = AbortSignal.timeout(END_MS);
  const untold = (error: unknown): void =>
    warn(`Not everything of this run could be taken down in libvirt, the next one will: ${messageOf(error)}`);
  try {
    await clearDomain(domain, { token, scratchDir }, signal);
    await removeSuperfluous(run, outcome, signal).catch((error: unknown) => {
      // of a domain that is off libvirt removes none
      if (!hasCode(error, "E_DOMAIN_OFF") && !hasCode(error, "E_DOMAIN_UNKNOWN")) untold(error);
    });
  } catch (error) {
    untold(error);
    await mark.giveUp().catch(() => undefined); // what marks the run may be what could not be written
  }
  await guard?.finish();
}

async function removeSuperfluous(
  { domain, plan, others }: DomainRun,
  outcome: Outcome,
  signal: AbortSignal,
): Promise<void> {
  const { repository, generation } = plan;
  if (outcome === "unknown") return;
  const names =
    outcome === "failed"
      ? [generationCheckpoint(repository, generation)]
      : staleCheckpoints(await checkpointsOf(domain, repository, "disks", signal), generation, others);
  for (const name of names) await deleteCheckpoint(domain, name, signal);
}
