import { Command } from "commander";
import { formatSize } from "../../bytes/size.ts";
import { AppError } from "../../errors.ts";
import { dryRun, runBackup } from "../../backup/run.ts";
import type { BackupProgress, BackupReport, BackupRequest, DryRun } from "../../backup/request.ts";
import { connectorOf, type SourceWish } from "../../jobs/connect-source.ts";
import { parseTags, sourceSettings, type SourceSettings } from "../../settings.ts";
import { action } from "../action.ts";
import { generationDocument, NO_HOLDS } from "../documents.ts";
import { Progress, formatSeconds, type ProgressState } from "../progress.ts";
import { isGone, packageVersion, thisProcess } from "../process.ts";
import { addQemuFlags, oneOf, qemuOptions, type QemuFlags } from "../qemu-flags.ts";
import { withSession, type RepositoryFlags } from "../session.ts";

interface Flags extends RepositoryFlags, QemuFlags {
  readonly name?: string;
  readonly full?: boolean;
  readonly disk: readonly string[];
  readonly tag: readonly string[];
  readonly bitmap?: string;
  readonly parent?: string;
  readonly connections?: string;
  readonly dedup: string;
  readonly dryRun?: boolean;
}

const collect = (value: string, all: readonly string[]): string[] => [...all, value];

export function backupCommand(): Command {
  const command = new Command("backup")
    .summary("back up a running VM, or NBD exports, as a new generation")
    .description(
      `Backs up a running QEMU over its monitor (qmp:PATH): freezes the guest, has QEMU make a point in time and begin new
dirty bitmaps in one go, thaws at once, and reads what changed since the last generation.

Or NBD exports that hold still: qemu-nbd -r on an idle image, a fleecing export. Without --bitmap the newest generation is
compared: what the export says is allocated is read, and only what is new is stored (a rescan). The first generation of
a name is a full. With --bitmap only what the dirty bitmap names is read.`,
    )
    .argument(
      "[source]",
      "qmp:PATH, or an NBD URI: nbd://HOST[:PORT]/EXPORT, nbds://…, nbd+unix:///EXPORT?socket=PATH",
    )
    .option("--name <NAME>", "the source's name in the repository (default: the export's name)")
    .option(
      "--disk <DISK>",
      "NAME=URI: a disk of the generation; qmp: NAME, only this one; repeatable",
      collect,
      [],
    )
    .option("--full", "read everything and stand on no earlier generation")
    .option("--bitmap <NAME>", "QEMU dirty bitmap of the exports, recording since --parent")
    .option("--parent <GENERATION>", "the generation that the bitmap belongs to")
    .option("--tag <KEY=VALUE>", "a label kept with the generation; repeat for several", collect, [])
    .option("--connections <N>", "NBD connections a disk (default 4, where the server allows several)")
    .option(
      "--dedup <SCOPE>",
      "look for known chunks in the whole repository, in this source, or off",
      "repository",
    )
    .option("--dry-run", "say what would be done; write nothing");
  return addQemuFlags(command)
    .addHelpText(
      "after",
      `
Examples:
  blockhaul backup -r s3://my-bucket/vms qmp:/run/web/qmp.sock --name web --guest-agent /run/web/qga.sock
  blockhaul backup -r /backup/vms nbd://127.0.0.1/web --name web
  blockhaul backup -r s3://my-bucket/vms 'nbd+unix:///vda?socket=/run/web.sock' --name web
  blockhaul backup -r s3://my-bucket/vms --name db --disk vda=nbd://h/vda --disk vdb=nbd://h/vdb
  blockhaul backup -r s3://my-bucket/vms nbd://h/vda --name db --bitmap b1 --parent db@latest`,
    )
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        const source = sourceSettings(command.args[0], flags.disk, flags.name);
        const tags = parseTags(flags.tag);
        const scope = oneOf("--dedup", flags.dedup, ["repository", "source", "off"]);
        const wish = wishOf(source, flags, (message) => cli.output.warn(message));
        await withSession(flags, cli, async (session) => {
          const progress = new Progress(cli.output);
          const request: BackupRequest = {
            ...session,
            source: source.name,
            connect: connectorOf(wish, session.repository.config.repository),
            tags,
            dedup: { scope, cacheDir: session.settings.cacheDir },
            holder: thisProcess(),
            isGone,
            writer: `blockhaul ${packageVersion()}`,
            warn: (message) => cli.output.warn(message),
            progress: (state) => progress.update(progressState(state)),
            peakRssBytes: () => process.resourceUsage().maxRSS * 1024,
          };
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

/** Checks the flags. */
function wishOf(source: SourceSettings, flags: Flags, warn: (message: string) => void): SourceWish {
  const { full = false, bitmap, parent } = flags;
  const common = { full, connections: parseConnections(flags.connections) };
  if (source.kind === "nbd") return { ...common, source, bitmap, parent };
  if (bitmap === undefined && parent === undefined) {
    return { ...common, source, qemu: qemuOptions(flags, source.qmp, source.disks, warn) };
  }
  const message = "--bitmap and --parent are for NBD exports: of a QEMU the right bitmap is found by itself";
  throw new AppError("usage", "E_FLAG", message);
}

function parseConnections(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const count = Number(text);
  if (Number.isInteger(count) && count >= 1 && count <= 16) return count;
  throw new AppError("usage", "E_CONNECTIONS", `Not a number of connections from 1 to 16: "${text}"`);
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
