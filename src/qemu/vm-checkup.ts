import { AppError, hasCode } from "../errors.ts";
import { GuestAgent } from "./guest-agent.ts";
import { queryStatus, surveyVm, type Vm } from "./inventory.ts";
import { describeTraces, findLeftovers, type RunTraces } from "./leftovers.ts";
import { connectMonitor } from "./monitor.ts";
import type { QmpClient } from "./qmp/client.ts";
import { clearLeftovers } from "./recovery.ts";
import {
  bitmapFindings,
  diskFindings,
  failed,
  fleecingFindings,
  foreignFindings,
  scratchFinding,
  type VmFinding,
} from "./vm-findings.ts";

export interface CheckupOptions {
  /** Path of the monitor's socket. */
  readonly qmp: string;
  /** Path of the guest agent's socket. */
  readonly agent?: string | undefined;
  /** Where backups of this VM keep their files. */
  readonly scratchDir: string;
  /** Clear what a backup would clear before it begins. */
  readonly fix: boolean;
}

/** What a checkup works on. */
interface Patient extends CheckupOptions {
  readonly client: QmpClient;
  /** Before anything was fixed. */
  readonly vm: Vm;
  readonly living: RunTraces | undefined;
  readonly dead: readonly RunTraces[];
}

/**
 * Looks at what a backup of this VM needs, and at what dead runs left. Without `fix` nothing is changed. With it what
 * dead runs left goes, a VM that stands because of them runs on, and a guest that one of them left frozen is thawed;
 * once more does no harm. Nothing of others is ever touched, and nothing while a run of ours is at work.
 *
 * What fails is among the findings.
 *
 * @throws the signal's reason.
 */
export async function checkUpVm(options: CheckupOptions, signal: AbortSignal): Promise<VmFinding[]> {
  let client: QmpClient;
  try {
    client = await connectMonitor(options.qmp, options.scratchDir, signal);
  } catch (error) {
    signal.throwIfAborted();
    return [failed("monitor", error)];
  }
  try {
    const runs = await findLeftovers(client, options.scratchDir, signal).catch((error: unknown) => {
      if (hasCode(error, "E_SCRATCH_FOLDER")) return []; // a finding of its own
      throw error;
    });
    const vm = await surveyVm(client, signal);
    const living = runs.find(({ pid }) => pid !== undefined);
    const dead = runs.filter(({ pid }) => pid === undefined);
    return await examine({ ...options, client, vm, living, dead }, signal);
  } catch (error) {
    signal.throwIfAborted();
    return [failed("monitor", error)];
  } finally {
    await client.close();
  }
}

async function examine(patient: Patient, signal: AbortSignal): Promise<VmFinding[]> {
  const { client, vm, scratchDir } = patient;
  const { major, minor, micro } = vm.version;
  const findings: VmFinding[] = [
    { check: "monitor", status: "ok", detail: `QEMU ${major}.${minor}.${micro} at ${client.path}` },
    ...fleecingFindings(vm, await client.schema(signal)),
    ...diskFindings(vm),
    ...bitmapFindings(vm),
    ...foreignFindings(vm),
    await scratchFinding(vm, scratchDir),
  ];
  // The traces of a dead run are what tells that a frozen guest is ours to thaw, so the guest comes first, if the VM
  // runs; and once more when that was of no avail: what the run left may be what its agent hangs in.
  const asked = vm.status === "running" ? await guestFindings(patient, signal) : [];
  findings.push(...(await runFindings(patient, signal)));
  const done = asked.length > 0 && (!patient.fix || asked.every(({ status }) => status !== "failed"));
  findings.push(...(done ? asked : await guestFindings(patient, signal)));
  findings.push(await statusFinding(patient, signal));
  return findings;
}

async function runFindings(patient: Patient, signal: AbortSignal): Promise<VmFinding[]> {
  const { client, living, dead, fix, scratchDir } = patient;
  if (living !== undefined) return livingFindings(living, patient);
  if (!fix) {
    return dead.map((run) => ({
      check: "leftovers",
      status: "warning",
      detail: `${describeTraces(run)}: of a run that died; the next backup clears it, or doctor --fix`,
    }));
  }
  try {
    const cleared = await clearLeftovers(client, { scratchDir }, signal);
    return cleared.map((run) => ({ check: "leftovers", status: "fixed", detail: `cleared: ${run}` }));
  } catch (error) {
    signal.throwIfAborted();
    return [failed("leftovers", error)];
  }
}

function livingFindings(living: RunTraces, { dead, fix }: Patient): VmFinding[] {
  const pid = living.pid!;
  const what = `A run of ours is at work on this VM (process ${pid}) and is left alone`;
  const run: VmFinding = fix
    ? failed("run", new AppError("locked", "E_VM_BUSY", `${what}; wait for it, or end it`, { pid }))
    : { check: "run", status: "ok", detail: what };
  const others = dead.map((other): VmFinding => {
    const detail = `${describeTraces(other)}: of a run that died; to be cleared when process ${pid} has ended`;
    return { check: "leftovers", status: "warning", detail };
  });
  return [run, ...others];
}

/** The agent's socket serves one client: while a run of ours is at work it is not asked. */
async function guestFindings(patient: Patient, signal: AbortSignal): Promise<VmFinding[]> {
  const { agent: path, living } = patient;
  if (path === undefined || living !== undefined) return [];
  try {
    const agent = await GuestAgent.connect(path, signal);
    try {
      return [await guestFinding(agent, patient, signal)];
    } finally {
      await agent.close();
    }
  } catch (error) {
    signal.throwIfAborted();
    const status = await queryStatus(patient.client, signal);
    if (status !== "running" && hasCode(error, "E_AGENT_SILENT")) {
      const detail = `does not answer at ${path}, and cannot: the VM stands (${status})`;
      return [{ check: "guest agent", status: "warning", detail }];
    }
    const finding = failed("guest agent", error);
    if (patient.dead.length === 0) return [finding];
    const detail = `${finding.detail}; a run that died may have left the guest frozen: guest-fsfreeze-thaw thaws it`;
    return [{ ...finding, detail }];
  }
}

async function guestFinding(agent: GuestAgent, patient: Patient, signal: AbortSignal): Promise<VmFinding> {
  const check = "guest agent";
  if ((await agent.status(signal)) === "thawed") {
    return { check, status: "ok", detail: `answers at ${agent.path}; the guest is thawed` };
  }
  if (patient.dead.length === 0) {
    const detail =
      "the guest is frozen, and no trace of a backup of ours says that we did it, so it is left so; " +
      "if nobody is at work, thaw it with guest-fsfreeze-thaw";
    return { check, status: "warning", detail };
  }
  if (!patient.fix) {
    const detail = "a run that died left the guest frozen; the next backup thaws it, or doctor --fix";
    return { check, status: "warning", detail };
  }
  const count = await agent.thaw(signal);
  return {
    check,
    status: "fixed",
    detail: `the guest, which a run that died had left frozen, is thawed (${count} file systems)`,
  };
}

/** Whether the VM runs, and if not, whether that is our doing. */
async function statusFinding({ client, vm, dead, living }: Patient, signal: AbortSignal): Promise<VmFinding> {
  const check = "vm";
  const now = await queryStatus(client, signal);
  const ours = vm.status === "io-error" ? dead.length > 0 : dead.some(({ stopped }) => stopped);
  if (now === "running" && vm.status !== "running" && ours) {
    return { check, status: "fixed", detail: `stood (${vm.status}) because of a run that died; runs again` };
  }
  if (now === "io-error") {
    const why = ours
      ? "stands because a write failed, most likely as the scratch of a run that died was full; the next backup " +
        "lets it go on, or doctor --fix"
      : living !== undefined
        ? "stands because a write failed while a run of ours is at work"
        : "stands because a write failed; see to the disk's storage, then let it go on with cont";
    return { check, status: "warning", detail: why };
  }
  if (now === "paused" && ours) {
    const detail =
      "stands because a run that died stopped it; the next backup lets it go on, or doctor --fix";
    return { check, status: "warning", detail };
  }
  return { check, status: "ok", detail: now };
}
