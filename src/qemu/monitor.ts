import { AppError, hasCode } from "../errors.ts";
import { QmpClient } from "./qmp/client.ts";
import { findRuns } from "./run-file.ts";

/**
 * Connects to a VM's monitor. One that serves somebody else tells nothing; when that is a run of ours, its mark does.
 *
 * @param scratchDir where runs on this VM keep their files.
 * @throws AppError E_VM_BUSY (locked) that names the process; E_SCRATCH_FOLDER (usage); as `QmpClient.connect`.
 */
export async function connectMonitor(
  qmp: string,
  scratchDir: string,
  signal: AbortSignal,
): Promise<QmpClient> {
  try {
    return await QmpClient.connect(qmp, signal);
  } catch (error) {
    if (!hasCode(error, "E_QMP_BUSY")) throw error;
    const runs = await findRuns(scratchDir, qmp);
    const pid = runs.find((run) => run.sameMonitor && run.pid !== undefined)?.pid;
    if (pid === undefined) throw error;
    const message = `A run of ours (process ${pid}) is at work on this VM and has its monitor ${qmp}; wait for it, or end it`;
    throw new AppError("locked", "E_VM_BUSY", message, { pid }, error);
  }
}
