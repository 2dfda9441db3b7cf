import { Command } from "commander";
import { formatSize } from "../../bytes/size.ts";
import { AppError } from "../../errors.ts";
import { resolveGeneration } from "../../repository/resolve-generation.ts";
import type { Manifest, ManifestDisk } from "../../repository/manifest.ts";
import { restoreDisk } from "../../restore/restore-disk.ts";
import { openTarget } from "../../restore/targets.ts";
import { withPin } from "../../restore/pin.ts";
import { action, type CliContext } from "../action.ts";
import { Progress, formatSeconds } from "../progress.ts";
import { packageVersion, thisProcess } from "../process.ts";
import { withSession, type RepositoryFlags, type Session } from "../session.ts";

interface Flags extends RepositoryFlags {
  readonly to: string;
  readonly disk?: string;
  readonly force?: boolean;
}

export function restoreCommand(): Command {
  return new Command("restore")
    .summary("restore a disk of a generation")
    .description(
      `Writes a disk of a generation to TARGET and checks every byte on the way. A failed restore never leaves a new
file under TARGET's name.

TARGET: a path (a new sparse raw file), a block device, qcow2:PATH, or an NBD URI.`,
    )
    .argument(
      "<generation>",
      "an id, a unique prefix of one, latest, NAME, NAME@latest, or NAME@2026-11-22T03:00Z",
    )
    .requiredOption("--to <TARGET>", "where to")
    .option("--disk <NAME>", "which disk, when the generation has several")
    .option("--force", "overwrite a file that exists; needed for block devices too")
    .addHelpText(
      "after",
      `
Examples:
  blockhaul restore -r /backup/vms web --to /var/lib/libvirt/images/web.raw
  blockhaul restore -r s3://my-bucket/vms db@2026-11-22T03:00Z --disk vda --to qcow2:/images/vda.qcow2
  blockhaul restore -r s3://my-bucket/vms web --to /dev/vg0/web --force`,
    )
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        await withSession(flags, cli, async (session) => {
          const { signal } = cli.run;
          const manifest = await resolveGeneration(session.repository, command.args[0]!, signal);
          const disk = pickDisk(manifest.disks, flags.disk, manifest.generation);
          const pin = {
            host: thisProcess().host,
            writer: `blockhaul ${packageVersion()}`,
            unpinned: (message: string) => cli.output.info(message),
          };
          await withPin(session.repository, manifest, pin, signal, () =>
            restoreTo(flags, manifest, disk, session, cli),
          );
        });
      }),
    );
}

async function restoreTo(
  flags: Flags,
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
    const seconds = (performance.now() - startedMs) / 1000;
    const requests = session.repository.store.requests();
    const peakRssBytes = process.resourceUsage().maxRSS * 1024;
    output.result(
      {
        generation: manifest.generation,
        source: manifest.source,
        disk: disk.name,
        target: flags.to,
        stats: { ...stats, bytes: disk.size, seconds, requests, peakRssBytes },
      },
      () =>
        `Restored ${disk.name} of ${manifest.generation} to ${flags.to}: ${formatSize(disk.size)}, ` +
        `${formatSize(stats.bytesWritten)} of data, every byte verified, ${formatSeconds(seconds)}`,
    );
  } finally {
    progress.end();
    await target.close();
  }
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
