import type { Repository } from "../../repository/config.ts";
import { encodeHold } from "../../repository/holds.ts";
import { liveLeases } from "../../repository/leases.ts";
import { runBeginKey, runEndKey, uuidTime } from "../../repository/names.ts";
import { RUN_GRACE_MS, type PinLookup } from "../../repository/pins.ts";
import { checkSideObjects, type Unreadable } from "../verify/side-objects.ts";
import type { RepairAction, RepairStep } from "./actions.ts";

export interface SideRepair extends RepairStep {
  readonly isGone: PinLookup["isGone"];
  /** Of this machine and program, for a hold that is written anew. */
  readonly host: string;
  readonly writer: string;
}

/**
 * Removes or rewrites objects that cannot be read and that no generation needs; what might still matter to somebody is
 * kept, and told. Index objects and `damaged/` records have repairs of their own.
 */
export async function repairSideObjects(
  repository: Repository,
  step: SideRepair,
  run: AbortController,
): Promise<void> {
  const { signal } = run;
  const now = await repository.store.now(signal);
  for (const found of await checkSideObjects(repository, run)) {
    const action = await decide(repository, found, step, now, signal);
    if (action === undefined) continue;
    if (!step.dryRun) await carryOut(repository, found, action, step, now, signal);
    step.act(action);
  }
}

async function decide(
  repository: Repository,
  { key, name, error, lastModified }: Unreadable,
  { isGone }: SideRepair,
  now: Date,
  signal: AbortSignal,
): Promise<RepairAction | undefined> {
  const oldest = now.getTime() - RUN_GRACE_MS;
  const act = (action: RepairAction["action"], why: string): RepairAction => ({ action, object: key, why });
  const { type } = name;
  if (type === "checked" || type === "profile" || type === "drill") return act("remove", error.message);
  if (type === "hold") return act("rewrite", error.message);
  if (type === "runBegin" || type === "runEnd") {
    const leased = await liveLeases(repository, name.source, isGone, signal);
    const over = !leased.has(name.run) && (uuidTime(name.run) ?? Infinity) < oldest;
    return over
      ? act("remove", error.message)
      : act("kept", `${error.message}; its run is not a day old yet`);
  }
  if (type === "condemned") {
    // a prune that has read it may still be deleting what it names
    return lastModified.getTime() < oldest
      ? act("remove", `${error.message}; what it names is not deleted`)
      : act(
          "kept",
          `${error.message}; it is removed when it is a day old, and until then backups cannot work`,
        );
  }
  if (type !== "key") return undefined;
  return act("kept", `${error.message}; add another password with blockhaul key add`);
}

async function carryOut(
  { store, ...repository }: Repository,
  { key, name }: Unreadable,
  { action }: RepairAction,
  { host, writer }: SideRepair,
  now: Date,
  signal: AbortSignal,
): Promise<void> {
  if (action === "kept") return;
  if (name.type === "hold") {
    const { source, generation } = name;
    const reason = "its record was damaged; held again by a repair";
    const common = { format: 1, repository: repository.config.repository } as const;
    const hold = { ...common, source, generation, heldAt: now.toISOString(), reason, host, writer };
    await store.replace(key, encodeHold({ store, ...repository }, hold), signal); // held without a moment between
  } else if (name.type === "runBegin" || name.type === "runEnd") {
    await store.delete([runBeginKey(name.source, name.run), runEndKey(name.source, name.run)], signal);
  } else await store.delete([key], signal);
}
