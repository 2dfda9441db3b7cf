import { formatSize } from "../bytes/size.ts";
import { findRuns } from "../qemu/run-file.ts";
import { refuseIothreads } from "../qemu/requirements.ts";
import { failed, scratchFinding, type VmFinding } from "../qemu/vm-findings.ts";
import { checkpointNames } from "./checkpoints.ts";
import { DomainHandle, type Domain } from "./domain.ts";
import { backupJob } from "./jobs.ts";
import { parseCheckpoint, runKey, tokenOfSocket } from "./names.ts";
import { canTrack } from "./parent.ts";
import { clearDomain, refuseBusy } from "./recovery.ts";

export interface DomainCheckupOptions {
  readonly domain: string;
  /** Libvirt's connection; undefined: its own choice. */
  readonly uri: string | undefined;
  /** Where backups of this domain keep their files. */
  readonly scratchDir: string;
  /** Clear what a backup would clear before it begins. */
  readonly fix: boolean;
}

/**
 * Looks at what a backup of this domain needs, and at what dead runs left. Without `fix` nothing is changed. What fails is
 * among the findings.
 *
 * @throws the signal's reason.
 */
export async function checkUpDomain(
  options: DomainCheckupOptions,
  signal: AbortSignal,
): Promise<VmFinding[]> {
  const { uri, domain, scratchDir } = options;
  try {
    const handle = await DomainHandle.find(uri, domain, signal);
    const found = await handle.survey(signal);
    return [
      { check: "domain", status: "ok", detail: `${found.name} (${found.uuid}) at ${handle.virsh.uri!}` },
      ...(await diskFindings(handle, found, signal)),
      await checkpointFinding(handle, signal),
      agentFinding(found),
      ...(await runFindings(handle, options, signal)),
      await scratchFinding(found, scratchDir),
    ];
  } catch (error) {
    signal.throwIfAborted();
    return [failed("domain", error)];
  }
}

async function diskFindings(
  handle: DomainHandle,
  { disks }: Domain,
  signal: AbortSignal,
): Promise<VmFinding[]> {
  const version = await handle.qemuVersion(signal);
  return disks.map((disk) => {
    const { name, format, size, iothread } = disk;
    try {
      refuseIothreads({ iothreads: iothread, version });
    } catch (error) {
      return failed(`disk ${name}`, error);
    }
    const how = canTrack(disk)
      ? "by what changed"
      : "as a whole each time: libvirt has no checkpoints for it";
    return { check: `disk ${name}`, status: "ok", detail: `${format}, ${formatSize(size)}; read ${how}` };
  });
}

async function checkpointFinding(handle: DomainHandle, signal: AbortSignal): Promise<VmFinding> {
  const names = await checkpointNames(handle, signal);
  const ours = names.filter((name) => parseCheckpoint(name) !== undefined).length;
  const detail = `${ours} of backups, ${names.length - ours} of others`;
  return { check: "checkpoints", status: "ok", detail };
}

function agentFinding({ agentChannel, agentConnected }: Domain): VmFinding {
  if (agentConnected) return { check: "guest", status: "ok", detail: "its agent is connected" };
  const why = agentChannel
    ? "no agent runs in it (install qemu-guest-agent)"
    : "the domain has no channel for an agent (org.qemu.guest_agent.0)";
  return { check: "guest", status: "warning", detail: `${why}: backups are crash consistent` };
}

async function runFindings(
  handle: DomainHandle,
  { scratchDir, fix }: DomainCheckupOptions,
  signal: AbortSignal,
): Promise<VmFinding[]> {
  try {
    if (fix) {
      const cleared = await clearDomain(handle, { scratchDir }, signal);
      return cleared.map((run) => ({ check: "leftovers", status: "fixed", detail: `cleared: ${run}` }));
    }
    const runs = (await findRuns(scratchDir, runKey(handle.uuid))).filter((run) => run.sameMonitor);
    const dead = runs.filter(({ pid }) => pid === undefined).map(({ token }) => token);
    const token = tokenOfSocket((await backupJob(handle, signal))?.socket ?? "");
    if (token === undefined || !dead.includes(token)) await refuseBusy(handle, signal);
    return dead.map((run) => ({
      check: "leftovers",
      status: "warning",
      detail: `run ${run}, which died; the next backup clears it, or doctor --fix`,
    }));
  } catch (error) {
    signal.throwIfAborted();
    return [failed("leftovers", error)];
  }
}
