import { rm } from "node:fs/promises";
import { connect } from "node:net";
import { AppError, hasCode } from "../errors.ts";
import { pause } from "../flow/retry.ts";
import type { HalfThread } from "./bitmaps.ts";
import { queryDisks, queryExports, queryJobs, queryStatus, surveyVm } from "./inventory.ts";
import { describeTraces, findLeftovers, tracesOf, type RunTraces } from "./leftovers.ts";
import { parseNode, RunNames, type NodeRole } from "./names.ts";
import type { QmpClient } from "./qmp/client.ts";
import { removeRunFiles } from "./run-file.ts";

/** How long something that was asked to go may take, in milliseconds. */
const GONE_MS = 30_000;
const GONE_STEP_MS = 10;

/** How long our own NBD server may take to accept, in milliseconds. */
const ACCEPT_MS = 2000;

/** Nodes are removed users first. A job's filter ("b") goes with its job. */
const REMOVAL: readonly NodeRole[] = ["a", "c", "s", "f"];

/**
 * Takes away what dead runs left: exports, jobs, the NBD server, nodes, temporary bitmaps, files; and lets a VM go on
 * that stands because of them. Once more does no harm, and neither does dying in the middle of it. The bitmaps of
 * generations stay: only who knows the repository can tell whether they are wanted.
 *
 * @param only token: this run alone, whether its process lives or not: for itself, and its guard.
 * @returns what there was, a line a run, for people.
 * @throws AppError E_VM_BUSY (locked) when one of the runs lives; E_LEFTOVER (source) when something will not go;
 *   as `surveyVm`.
 */
export async function clearLeftovers(
  client: QmpClient,
  { token, scratchDir }: { readonly token?: string; readonly scratchDir: string },
  signal: AbortSignal,
): Promise<string[]> {
  const found = await findLeftovers(client, scratchDir, signal);
  const runs = token === undefined ? found : found.filter((run) => run.token === token);
  const living = token === undefined ? runs.find((run) => run.pid !== undefined) : undefined;
  if (living !== undefined) {
    throw new AppError(
      "locked",
      "E_VM_BUSY",
      `Another backup of this VM is running (process ${living.pid!}); wait for it, or end it`,
      { pid: living.pid, token: living.token },
    );
  }
  for (const run of runs) await clearRun(client, run, signal);
  return runs.map(describeTraces);
}

/**
 * The order matters. A VM that we stopped goes on at once; one that stands because its write found the scratch full,
 * when nothing of ours is in the way of that write any more. An export must be gone before its job is cancelled, for
 * without the job it shows the disk as it is now. Files go last, because they say that there is something to clear.
 */
async function clearRun(client: QmpClient, run: RunTraces, signal: AbortSignal): Promise<void> {
  try {
    if (run.stopped) await client.execute("cont", undefined, signal);
    await deleteExports(client, run.exports, signal);
    await cancelJobs(client, run.jobs, signal);
    await stopOurServer(client, run, signal);
    await removeNodes(client, run, signal);
    await removeTemporaryBitmaps(client, run, signal);
  } finally {
    // whose error it was cannot be told any more; a write that fails again stops the VM again
    if ((await queryStatus(client, signal)) === "io-error") await client.execute("cont", undefined, signal);
  }
  for (const folder of run.folders) await removeFiles(run.token, folder);
}

/** Removes what a run has in its scratch folder. QEMU, if it lives, has nothing of the run any more. */
export async function removeFiles(token: string, folder: string): Promise<void> {
  const socket = new RunNames(token).socket(folder);
  if (!(await accepts(socket))) await rm(socket, { force: true }); // QEMU does that itself, unless it was killed
  await removeRunFiles(folder, token);
}

async function deleteExports(client: QmpClient, ids: readonly string[], signal: AbortSignal): Promise<void> {
  for (const id of ids) {
    const there = async (): Promise<boolean> =>
      (await queryExports(client, signal)).some((one) => one.id === id);
    await remove(client, "block-export-del", { id, mode: "hard" }, there, signal);
  }
}

async function cancelJobs(client: QmpClient, ids: readonly string[], signal: AbortSignal): Promise<void> {
  for (const id of ids) {
    const there = async (): Promise<boolean> =>
      (await queryJobs(client, signal)).some((one) => one.id === id);
    await remove(client, "block-job-cancel", { device: id, force: true }, there, signal);
  }
}

/**
 * QEMU has one NBD server and does not tell where it listens. It is ours when it does so on the run's socket. Who
 * added an export to it keeps it.
 */
async function stopOurServer(client: QmpClient, run: RunTraces, signal: AbortSignal): Promise<void> {
  for (const folder of run.folders) {
    if (!(await accepts(new RunNames(run.token).socket(folder)))) continue;
    if ((await queryExports(client, signal)).length > 0) continue;
    const there = (): Promise<boolean> => accepts(new RunNames(run.token).socket(folder));
    await remove(client, "nbd-server-stop", undefined, there, signal);
  }
}

/** Puts the disks back under the devices that look through our filters, then removes our nodes. */
async function removeNodes(client: QmpClient, run: RunTraces, signal: AbortSignal): Promise<void> {
  for (const role of REMOVAL) {
    if (role === "c") await takeOutFilters(client, run, signal);
    for (const node of run.nodes.filter((name) => parseNode(name)?.role === role)) {
      const there = async (): Promise<boolean> =>
        (await surveyVm(client, signal)).nodes.some((one) => one.name === node);
      await remove(client, "blockdev-del", { "node-name": node }, there, signal);
    }
  }
}

/** Which node belongs under a filter is told by a bitmap of the filter's name on it. */
async function takeOutFilters(client: QmpClient, run: RunTraces, signal: AbortSignal): Promise<void> {
  for (const disk of await queryDisks(client, signal)) {
    const parsed = parseNode(disk.node);
    if (parsed?.token !== run.token || parsed.role !== "c") continue;
    const below = run.bitmaps.find((bitmap) => bitmap.name === disk.node)?.node;
    if (below === undefined) throw leftoverError(`the filter ${disk.node} of disk ${disk.name}`);
    await client.execute("qom-set", { path: disk.qdev, property: "drive", value: below }, signal);
  }
}

async function removeTemporaryBitmaps(client: QmpClient, run: RunTraces, signal: AbortSignal): Promise<void> {
  for (const { node, name } of run.bitmaps) {
    const there = async (): Promise<boolean> =>
      tracesOf(await surveyVm(client, signal), run.token).bitmaps.some(
        (one) => one.node === node && one.name === name,
      );
    await remove(client, "block-dirty-bitmap-remove", { node, name }, there, signal);
  }
}

/**
 * Ends what `halfThreads` found, as the interrupted run would have: the old bitmap records again and knows what the
 * new ones recorded, and those go. One transaction for all disks.
 *
 * @throws AppError as `QmpClient.execute`; then nothing has changed.
 */
export async function mergeHalfThreads(
  client: QmpClient,
  halves: readonly HalfThread[],
  signal: AbortSignal,
): Promise<void> {
  if (halves.length === 0) return;
  const actions = halves.flatMap(({ node, parent, successors }) => [
    { type: "block-dirty-bitmap-enable", data: { node, name: parent } },
    { type: "block-dirty-bitmap-merge", data: { node, target: parent, bitmaps: successors } },
    ...successors.map((name) => ({ type: "block-dirty-bitmap-remove", data: { node, name } })),
  ]);
  await client.execute("transaction", { actions }, signal);
}

/**
 * Asks for something to go and waits until it has. That it went by itself, or by another hand, is as good.
 *
 * @throws AppError E_LEFTOVER (source), with what QEMU said.
 */
async function remove(
  client: QmpClient,
  command: string,
  args: Readonly<Record<string, unknown>> | undefined,
  there: () => Promise<boolean>,
  signal: AbortSignal,
): Promise<void> {
  let refusal: AppError | undefined;
  try {
    await client.execute(command, args, signal);
  } catch (error) {
    if (!hasCode(error, "E_QMP_COMMAND")) throw error;
    refusal = error;
  }
  const until = performance.now() + (refusal === undefined ? GONE_MS : 0);
  while (await there()) {
    if (performance.now() >= until) {
      throw leftoverError(`${command} ${Object.values(args ?? {}).join(" ")}`, refusal);
    }
    await pause(GONE_STEP_MS, signal);
  }
}

function leftoverError(what: string, cause?: AppError): AppError {
  const said = cause === undefined ? "it stays" : cause.message;
  return new AppError("source", "E_LEFTOVER", `Cannot clear ${what} of a backup in QEMU: ${said}`, {}, cause);
}

/** Whether somebody listens on the socket. */
async function accepts(path: string): Promise<boolean> {
  const socket = connect(path);
  const late = AbortSignal.timeout(ACCEPT_MS);
  return await new Promise<boolean>((resolve) => {
    const answer = (listening: boolean): void => {
      socket.destroy();
      resolve(listening);
    };
    socket.on("connect", () => answer(true)).on("error", () => answer(false));
    late.addEventListener("abort", () => answer(false), { once: true });
  });
}
