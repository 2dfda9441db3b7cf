import { Command } from "commander";
import { formatSize } from "../../bytes/size.ts";
import { AppError } from "../../errors.ts";
import { resolveGeneration } from "../../repository/resolve-generation.ts";
import type { Manifest, ManifestDisk } from "../../repository/manifest.ts";
import { restoreDisk } from "../../restore/restore-disk.ts";
import { restoreInPlace } from "../../restore/in-place.ts";
import { openInPlace, openTarget } from "../../restore/targets.ts";
import { type PinOptions, withPin } from "../../restore/pin.ts";
import { action, type CliContext } from "../action.ts";
import { Progress, formatSeconds } from "../progress.ts";
import { packageVersion, thisProcess } from "../process.ts";
import type { Session } from "../../session/session.ts";
import { withSession, type RepositoryFlags } from "../session.ts";

interface Flags extends RepositoryFlags {
  readonly to: string;
  readonly disk?: string;
  readonly force?: boolean;
  readonly inPlace?: boolean;
  readonly bitmap?: string;
}

export function restoreCommand(): Command {
  return new Command("restore")
    .summary("restore a disk of a generation")
    .description(
      `Writes a disk of a generation to TARGET and checks every byte on the way. A failed restore never leaves a new
file under TARGET's name.

TARGET: a path (a new sparse raw file), a block device, qcow2:PATH, vmdk:PATH, or an NBD URI.

With --in-place the target is a disk that is there (a raw file, a block device, or an NBD URI): each chunk that it holds
is compared by its hash, and only those that differ are fetched and written. Nobody else may use it meanwhile. What is
interrupted leaves it half changed, and is completed by doing it again.`,
    )
    .argument(
      "<generation>",
      "an id, a unique prefix of one, latest, NAME, NAME@latest, or NAME@2026-11-22T03:00Z",
    )
    .requiredOption("--to <TARGET>", "where to")
    .option("--disk <NAME>", "which disk, when the generation has several")
    .option("--force", "overwrite a file that exists; needed for block devices too")
    .option("--in-place", "compare what the target holds, and write only what differs")
    .option(
      "--bitmap <NAME>",
      "with --in-place: a QEMU bitmap of the NBD target that has recorded since the generation; only that is compared",
    )
    .addHelpText(
      "after",
      `
Examples:
  blockhaul restore -r /backup/vms web --to /var/lib/libvirt/images/web.raw
  blockhaul restore -r s3://my-bucket/vms db@2026-11-22T03:00Z --disk vda --to qcow2:/images/vda.qcow2
  blockhaul restore -r s3://my-bucket/vms web --to /dev/vg0/web --force
  blockhaul restore -r s3://my-bucket/vms web --to /dev/vg0/web --force --in-place`,
    )
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        await withSession(flags, cli, async (session) => {
          const { signal } = cli.run;
          const manifest = await resolveGeneration(session.repository, command.args[0]!, signal);
          const disk = pickDisk(manifest.disks, flags.disk, manifest.generation);
          if (flags.bitmap !== undefined && flags.inPlace !== true) {
            throw new AppError("usage", "E_IN_PLACE", "--bitmap goes with --in-place");
          }
          const work = flags.inPlace === true ? putRight : restoreTo;
          await withPin(session.repository, manifest, pinOptions(cli), signal, () =>
            work(flags, manifest, disk, session, cli),
          );
        });
      }),
    );
}

/** How a command that reads a generation says who it is. */
export function pinOptions({ output }: CliContext): PinOptions {
  return {
    purpose: "restore",
    host: thisProcess().host,
    writer: `blockhaul ${packageVersion()}`,
    unpinned: (message) => output.info(message),
  };
}

/** What is to be restored to where. */
export interface RestoreWish {
  readonly to: string;
  readonly force?: boolean;
  readonly bitmap?: string;
}

/** Restores to a target that is new, or is overwritten as a whole, and reports it. */
export async function restoreTo(
  flags: RestoreWish,
  manifest: Manifest,
  disk: ManifestDisk,
  session: Session,
  { output, run }: CliContext,
): Promise<void> {
  const startedMs = performance.now();
  const target = await openTarget(flags.to, disk.size, { force: flags.force === true }, run.signal);
  const progress = new Progress(output);
  try {
    const stats = await restoreDisk(disk, target.disk, session, run, (now) =>
      progress.update({
        label: disk.name,
        done: now.bytesWritten + now.bytesZero,
        total: disk.size,
        note: "",
      }),
    );
    await target.finish(run.signal);
    progress.end();
    const report = reportOf(flags, manifest, disk, session, startedMs, stats);
    output.result(
      report,
      () =>
        `Restored ${disk.name} of ${manifest.generation} to ${flags.to}: ${formatSize(disk.size)}, ` +
        `${formatSize(stats.bytesWritten)} of data, every byte verified, ${formatSeconds(report.stats.seconds)}`,
    );
  } finally {
    progress.end();
    await target.close();
  }
}

/** Changes what differs on a target that is there, and reports it. */
async function putRight(
  flags: RestoreWish,
  manifest: Manifest,
  disk: ManifestDisk,
  session: Session,
  { output, run }: CliContext,
): Promise<void> {
  const startedMs = performance.now();
  const options = { force: flags.force === true, bitmap: flags.bitmap };
  const target = await openInPlace(flags.to, disk.size, options, run.signal);
  const progress = new Progress(output);
  try {
    const stats = await restoreInPlace(disk, target, session, run, (now, looked) =>
      progress.update({
        label: disk.name,
        done: looked,
        total: disk.size,
        note: `${formatSize(now.bytesWritten + now.bytesZero)} written`,
      }),
    );
    progress.end();
    const report = reportOf(flags, manifest, disk, session, startedMs, stats);
    output.result(
      report,
      () =>
        `Restored ${disk.name} of ${manifest.generation} in place on ${flags.to}: ${formatSize(disk.size)}, ` +
        `${formatSize(stats.bytesRead)} read, ${formatSize(stats.bytesFetched)} fetched, ` +
        `${formatSize(stats.bytesWritten + stats.bytesZero)} written, ${formatSeconds(report.stats.seconds)}`,
    );
  } finally {
    progress.end();
    await target.close();
  }
}

function reportOf<Stats extends object>(
  { to }: RestoreWish,
  manifest: Manifest,
  disk: ManifestDisk,
  session: Session,
  startedMs: number,
  stats: Stats,
) {
  const seconds = (performance.now() - startedMs) / 1000;
  const requests = session.repository.store.requests();
  const peakRssBytes = process.resourceUsage().maxRSS * 1024;
  return {
    generation: manifest.generation,
    source: manifest.source,
    disk: disk.name,
    target: to,
    stats: { ...stats, bytes: disk.size, seconds, requests, peakRssBytes },
  };
}

/** @throws AppError E_WHICH_DISK (usage), E_NO_DISK (notFound). */
export function pickDisk(
  disks: readonly ManifestDisk[],
  name: string | undefined,
  generation: string,
): ManifestDisk {
  const names = disks.map((disk) => disk.name).join(", ");
  if (name === undefined) {
    if (disks.length === 1) return disks[0]!;
    throw new AppError(
      "usage",
      "E_WHICH_DISK",
      `Generation ${generation} has several disks; choose with --disk: ${names}`,
    );
  }
  const disk = disks.find((candidate) => candidate.name === name);
  if (disk !== undefined) return disk;
  throw new AppError(
    "notFound",
    "E_NO_DISK",
    `Generation ${generation} has no disk ${name}; it has: ${names}`,
  );
}
