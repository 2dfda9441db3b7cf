import type { Command } from "commander";
import type { BackupRequest } from "../backup/request.ts";
import { AppError } from "../errors.ts";
import { connectorOf, wantedImages, type SourceWish } from "../jobs/connect-source.ts";
import type { Session } from "../session/session.ts";
import { parseTags, sourceSettings, type SourceSettings } from "../settings.ts";
import type { CliContext } from "./action.ts";
import { isGone, packageVersion, thisProcess } from "./process.ts";
import { addQemuFlags, libvirtOptions, oneOf, qemuOptions, type QemuFlags } from "./qemu-flags.ts";
import type { RepositoryFlags } from "./session.ts";

/** What `backup` and `plan` are told of a source. */
export interface SourceFlags extends RepositoryFlags, QemuFlags {
  readonly name?: string;
  readonly full?: boolean;
  readonly disk: readonly string[];
  readonly tag: readonly string[];
  readonly bitmap?: string;
  readonly parent?: string;
  readonly format?: string;
  readonly leaveImages?: boolean;
  readonly connections?: string;
  readonly dedup: string;
}

const collect = (value: string, all: readonly string[]): string[] => [...all, value];

export function addSourceFlags(command: Command): Command {
  command
    .argument(
      "[source]",
      "libvirt:DOMAIN, qmp:PATH, image:PATH, or an NBD URI: nbd://HOST[:PORT]/EXPORT, nbds://…, nbd+unix:///EXPORT?socket=PATH",
    )
    .option(
      "--name <NAME>",
      "the source's name in the repository (default: the domain's, export's or image's name)",
    )
    .option(
      "--disk <DISK>",
      "NAME=URI or NAME=image:PATH: a disk of the generation; qmp, libvirt: NAME, only this one; repeatable",
      collect,
      [],
    )
    .option("--full", "read everything and stand on no earlier generation")
    .option("--bitmap <NAME>", "QEMU dirty bitmap of the exports, recording since --parent")
    .option("--parent <GENERATION>", "the generation that the bitmap belongs to")
    .option("--format <FORMAT>", "image: raw, qcow2, vmdk, vdi, vhdx or vpc, where the name does not tell")
    .option("--leave-images", "image: begin no dirty bitmap in them, and read all the next time")
    .option("--tag <KEY=VALUE>", "a label kept with the generation; repeat for several", collect, [])
    .option("--connections <N>", "NBD connections a disk (default 4, where the server allows several)")
    .option(
      "--dedup <SCOPE>",
      "look for known chunks in the whole repository, in this source, or off",
      "repository",
    );
  return addQemuFlags(command);
}

/**
 * Checks the flags. @returns what is asked for, once the repository is open.
 * @throws AppError (usage): those of `sourceSettings`, `parseTags`, `qemuOptions`; E_FLAG, E_CONNECTIONS, E_IMAGE_FORMAT.
 */
export function requestOf(
  flags: SourceFlags,
  argument: string | undefined,
  cli: CliContext,
): (session: Session, progress: BackupRequest["progress"]) => BackupRequest {
  const source = sourceSettings(argument, flags.disk, flags.name);
  const tags = parseTags(flags.tag);
  const scope = oneOf("--dedup", flags.dedup, ["repository", "source", "off"]);
  const warn = (message: string): void => cli.output.warn(message);
  const wish = wishOf(source, flags, warn);
  return (session, progress) => ({
    ...session,
    source: source.name,
    connect: connectorOf(wish, session.repository.config.repository),
    tags,
    dedup: { scope, cacheDir: session.settings.cacheDir },
    holder: thisProcess(),
    isGone,
    writer: `blockhaul ${packageVersion()}`,
    warn,
    progress,
    peakRssBytes: () => process.resourceUsage().maxRSS * 1024,
  });
}

function wishOf(source: SourceSettings, flags: SourceFlags, warn: (message: string) => void): SourceWish {
  const { full = false, bitmap, parent } = flags;
  const common = { full, connections: parseConnections(flags.connections) };
  const ofImages = flags.format !== undefined || flags.leaveImages !== undefined;
  if (source.kind !== "image" && ofImages) {
    throw new AppError("usage", "E_FLAG", "--format and --leave-images are for images: image:PATH");
  }
  if (source.kind === "nbd") return { ...common, source, bitmap, parent };
  if (bitmap !== undefined || parent !== undefined) {
    const message =
      "--bitmap and --parent are for NBD exports: of QEMU and images the right one is found by itself";
    throw new AppError("usage", "E_FLAG", message);
  }
  if (source.kind === "image") {
    const leave = flags.leaveImages ?? false;
    return { ...common, source, images: wantedImages(source, flags.format), leave, warn };
  }
  if (source.kind === "libvirt") {
    return { ...common, source, libvirt: libvirtOptions(flags, source.domain, source.disks, warn) };
  }
  return { ...common, source, qemu: qemuOptions(flags, source.qmp, source.disks, warn) };
}

function parseConnections(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const count = Number(text);
  if (Number.isInteger(count) && count >= 1 && count <= 16) return count;
  throw new AppError("usage", "E_CONNECTIONS", `Not a number of connections from 1 to 16: "${text}"`);
}
