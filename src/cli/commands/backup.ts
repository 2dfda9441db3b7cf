import { Command } from "commander";
import { formatSize } from "../../bytes/size.ts";
import { dryRun, runBackup } from "../../backup/run.ts";
import type { BackupProgress, BackupReport, DryRun } from "../../backup/request.ts";
import { action } from "../action.ts";
import { generationDocument, NO_HOLDS } from "../documents.ts";
import { Progress, formatSeconds, type ProgressState } from "../progress.ts";
import { withSession } from "../session.ts";
import { addSourceFlags, requestOf, type SourceFlags } from "../source-flags.ts";

interface Flags extends SourceFlags {
  readonly dryRun?: boolean;
}

export function backupCommand(): Command {
  const command = new Command("backup")
    .summary("back up a running VM, idle images, or NBD exports, as a new generation")
    .description(
      `Backs up a running domain of libvirt (libvirt:DOMAIN), or a running QEMU over its monitor (qmp:PATH): freezes the
guest, has a point in time made and new dirty bitmaps begun in one go, thaws at once, and reads what changed since the
last generation.

Or images that no VM runs on (image:PATH): qcow2 by the dirty bitmaps that are begun in them, the others as a whole.

Or NBD exports that hold still: qemu-nbd -r on an idle image, a fleecing export. Without --bitmap the newest generation is
compared: what the export says is allocated is read, and only what is new is stored (a rescan). The first generation of
a name is a full. With --bitmap only what the dirty bitmap names is read.`,
    );
  return addSourceFlags(command)
    .option("--dry-run", "say what would be done; write nothing")
    .addHelpText(
      "after",
      `
Examples:
  blockhaul backup -r s3://my-bucket/vms libvirt:web
  blockhaul backup -r s3://my-bucket/vms qmp:/run/web/qmp.sock --name web --guest-agent /run/web/qga.sock
  blockhaul backup -r /backup/vms image:/var/lib/vm/web.qcow2
  blockhaul backup -r /backup/vms nbd://127.0.0.1/web --name web
  blockhaul backup -r s3://my-bucket/vms 'nbd+unix:///vda?socket=/run/web.sock' --name web
  blockhaul backup -r s3://my-bucket/vms --name db --disk vda=nbd://h/vda --disk vdb=nbd://h/vdb
  blockhaul backup -r s3://my-bucket/vms nbd://h/vda --name db --bitmap b1 --parent db@latest`,
    )
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        const requestFor = requestOf(flags, command.args[0], cli);
        await withSession(flags, cli, async (session) => {
          const progress = new Progress(cli.output);
          const request = requestFor(session, (state) => progress.update(progressState(state)));
          if (flags.dryRun === true) {
            const disks = await dryRun(request, cli.run.signal);
            cli.output.result({ dryRun: true, disks }, () => dryText(disks));
            return;
          }
          const report = await runBackup(request, cli.run).finally(() => progress.end());
          const { manifest, stats, guest } = report;
          const document = { ...generationDocument(manifest, NO_HOLDS), stats, ...(guest && { guest }) };
          cli.output.result(document, () => text(report, session.repository.store.location));
        });
      }),
    );
}

function progressState({ disk, position, size, stats }: BackupProgress): ProgressState {
  const saved = stats.bytesPacked > 0 ? `${(stats.bytesRead / stats.bytesPacked).toFixed(1)}x smaller` : "";
  return { label: disk, done: position, total: size, note: saved };
}

function dryText(disks: readonly DryRun[]): string {
  return disks
    .map(({ name, kind, reason, size }) => `${name}: ${kind} (${reason}), ${formatSize(size)}`)
    .join("\n");
}

function text(report: BackupReport, location: string): string {
  const { manifest, stats, guest } = report;
  const requests = Object.values(stats.requests).reduce((sum, count) => sum + count, 0);
  const frozen = guest?.frozenMs === undefined ? "" : `, guest frozen for ${guest.frozenMs.toFixed(0)} ms`;
  return `Generation ${manifest.generation} of ${manifest.source} in ${location}
  ${manifest.kind}: ${manifest.reason}
  consistency: ${manifest.consistency}${frozen}
  read ${formatSize(stats.bytesRead)}, zero ${formatSize(stats.bytesZero)}, unchanged ${formatSize(stats.bytesUnchanged)}, deduplicated ${formatSize(stats.bytesDeduplicated)}
  stored ${formatSize(stats.bytesStored)} as ${formatSize(stats.bytesPacked)}, metadata ${formatSize(stats.metadataBytes)}
  ${formatSeconds(stats.seconds)} at ${formatSize(Math.round(stats.bytesRead / Math.max(stats.seconds, 0.001)))}/s, ${requests} requests`;
}
