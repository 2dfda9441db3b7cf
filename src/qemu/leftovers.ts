import { dirname, isAbsolute } from "node:path";
import { surveyVm, type Vm } from "./inventory.ts";
import { parseNode, tokenOfBitmap, tokenOfExport, tokenOfJob } from "./names.ts";
import type { QmpClient } from "./qmp/client.ts";
import { findRuns, type FoundRun } from "./run-file.ts";

/** What a run has in a VM and beside it. */
export interface RunTraces {
  readonly token: string;
  /** The process that is still at it. */
  readonly pid: number | undefined;
  readonly exports: readonly string[];
  readonly jobs: readonly string[];
  readonly nodes: readonly string[];
  readonly bitmaps: readonly { readonly node: string; readonly name: string }[];
  /** Folders that hold files of the run. */
  readonly folders: readonly string[];
  /** The run stopped the VM, which has not run since. */
  readonly stopped: boolean;
}

/**
 * Every run that left something in the VM or, on this monitor, in the scratch folder, told by names alone. Whatever
 * has no such name is somebody else's.
 *
 * @throws AppError as `surveyVm`.
 */
export async function findLeftovers(
  client: QmpClient,
  scratchFolder: string,
  signal: AbortSignal,
): Promise<RunTraces[]> {
  const vm = await surveyVm(client, signal);
  const inVm = tokensIn(vm);
  const marks = new Map<string, FoundRun & { readonly folder: string }>();
  for (const folder of new Set([scratchFolder, ...foldersInUse(vm)])) {
    for (const run of await findRuns(folder, client.path)) {
      // a run on another monitor is of this VM when it has something in it; else it may be of any VM
      if (run.sameMonitor || inVm.has(run.token)) marks.set(run.token, { ...run, folder });
    }
  }
  const tokens = new Set([...inVm, ...marks.keys()]);
  return [...tokens].sort().map((token) => {
    const mark = marks.get(token);
    return {
      ...tracesOf(vm, token),
      pid: mark?.pid,
      folders: [...new Set([...(mark === undefined ? [] : [mark.folder]), ...foldersInUse(vm, token)])],
      stopped: mark?.stopped === true && vm.status === "paused",
    };
  });
}

/** "export bk-…, job bk-…", for people. */
export function describeTraces(run: RunTraces): string {
  const things = [
    ...run.exports.map((id) => `export ${id}`),
    ...run.jobs.map((id) => `job ${id}`),
    ...run.nodes.map((name) => `node ${name}`),
    ...run.bitmaps.map(({ node, name }) => `bitmap ${name} of ${node}`),
    ...(run.stopped ? ["a stopped VM"] : []),
  ];
  const files = run.folders.map((folder) => `files bk-${run.token}* in ${folder}`);
  return [...things, ...files].join(", ");
}

function tokensIn(vm: Vm): Set<string> {
  return new Set(
    [
      ...vm.exports.map(({ id }) => tokenOfExport(id)),
      ...vm.jobs.map(({ id }) => tokenOfJob(id)),
      ...vm.nodes.map(({ name }) => parseNode(name)?.token),
      ...vm.nodes.flatMap(({ bitmaps }) => bitmaps.map(({ name }) => tokenOfBitmap(name))),
    ].filter((token) => token !== undefined),
  );
}

/** What of a run is in the VM. */
export function tracesOf(
  vm: Vm,
  token: string,
): Pick<RunTraces, "token" | "exports" | "jobs" | "nodes" | "bitmaps"> {
  return {
    token,
    exports: vm.exports.map(({ id }) => id).filter((id) => tokenOfExport(id) === token),
    jobs: vm.jobs.map(({ id }) => id).filter((id) => tokenOfJob(id) === token),
    nodes: vm.nodes.map(({ name }) => name).filter((name) => parseNode(name)?.token === token),
    bitmaps: vm.nodes.flatMap(({ name: node, bitmaps }) =>
      bitmaps.filter(({ name }) => tokenOfBitmap(name) === token).map(({ name }) => ({ node, name })),
    ),
  };
}

/** Where scratch images lie that QEMU has open: of one run, or of all. */
function foldersInUse(vm: Vm, token?: string): string[] {
  return vm.nodes.flatMap(({ name, filename }) => {
    const parsed = parseNode(name);
    const ours = parsed?.role === "f" && (token === undefined || parsed.token === token);
    return ours && isAbsolute(filename) ? [dirname(filename)] : [];
  });
}
