import type { ReadTools } from "../repository/read-tools.ts";
import type { RepairAction } from "./repair/actions.ts";
import { repairDamagedRecords } from "./repair/damaged-records.ts";
import { repairIndex } from "./repair/index-objects.ts";
import { repairSideObjects, type SideRepair } from "./repair/side-objects.ts";
import { verify, type VerifyReport, type VerifyRequest } from "./verify.ts";

export type { RepairAction } from "./repair/actions.ts";

/** The generations are all there are. */
export interface RepairRequest extends Omit<VerifyRequest, "complete" | "record">, Omit<SideRepair, "act"> {
  /** Told of each action when it is done; as a dry run, of what would be done. */
  readonly act: (action: RepairAction) => void;
}

/**
 * Brings a repository into a state in which backups, restores and verifies work, without giving up anything that could
 * still be read:
 *
 * - `damaged/` records are held against what is stored now;
 * - records that cannot be read and that nobody needs are removed, holds are written anew;
 * - `index/` is completed from the packs, and rid of what cannot be read;
 * - then everything is verified, and what is lost is recorded.
 *
 * Manifests, layers and packs are never touched: what cannot be read of them stays where it is.
 *
 * @returns what is wrong all the same; nothing when all is well afterwards.
 */
export async function repair(
  request: RepairRequest,
  tools: ReadTools,
  run: AbortController,
): Promise<VerifyReport> {
  await repairDamagedRecords(tools, request, run);
  await repairSideObjects(tools.repository, request, run);
  await repairIndex(request.manifests, tools, request, run);
  return await verify({ ...request, complete: true, record: !request.dryRun }, tools, run);
}
