import type { Command } from "commander";
import { parseSize } from "../bytes/size.ts";
import { AppError } from "../errors.ts";
import { FREEZE_BUDGET_MS, SCRATCH_DIR } from "../jobs/connect-source.ts";
import type { DomainOptions } from "../libvirt/point-in-time.ts";
import type { QemuSourceOptions } from "../qemu/point-in-time.ts";

const FREEZE_SECONDS_MAX = 60;

/** Of every command on a running QEMU: where runs keep their files. */
export interface ScratchFlag {
  readonly scratch: string;
}

/** For commands beside `backup`. What dead backups left is found by it, so it should be that of the VM's backups. */
export function addScratchFlag(command: Command): Command {
  return command.option(
    "--scratch <DIR>",
    "scratch folder of this VM's backups; QEMU writes there",
    SCRATCH_DIR,
  );
}

/** @throws AppError E_FLAG (usage). */
export function scratchDirectory({ scratch }: ScratchFlag): string {
  return absolute("--scratch", scratch);
}

/** The flags of a backup of a running QEMU, by itself or under libvirt. */
export interface QemuFlags extends ScratchFlag {
  readonly connect?: string;
  readonly guestAgent?: string;
  readonly freeze: string;
  readonly freezeBudget: string;
  readonly fleecing: string;
  readonly scratchSize?: string;
}

export function addQemuFlags(command: Command): Command {
  return command
    .option("--connect <URI>", "libvirt: the connection, as qemu:///system (default: libvirt's own choice)")
    .option(
      "--guest-agent <PATH>",
      "qmp: socket of the guest agent, to freeze the file systems for the instant",
    )
    .option("--freeze <WHEN>", "qmp, libvirt: auto (if an agent answers), require, or off", "auto")
    .option(
      "--freeze-budget <SECONDS>",
      "qmp, libvirt: the longest that the guest may stand frozen",
      String(FREEZE_BUDGET_MS / 1000),
    )
    .option(
      "--fleecing <HOW>",
      "qmp: classic, filter (trouble costs the backup, not the guest), or auto",
      "auto",
    )
    .option(
      "--scratch <DIR>",
      "qmp, libvirt: for what the guest overwrites meanwhile; QEMU writes there",
      SCRATCH_DIR,
    )
    .option("--scratch-size <SIZE>", "qmp, libvirt: the most it may take there (default: all it could need)");
}

/** @throws AppError E_FLAG (usage), E_SIZE (usage). */
export function qemuOptions(
  flags: QemuFlags,
  qmp: string,
  disks: readonly string[],
  warn: (message: string) => void,
): QemuSourceOptions {
  const { connect, guestAgent, fleecing } = flags;
  if (connect !== undefined) {
    throw new AppError("usage", "E_FLAG", "--connect is for a domain of libvirt: give it as libvirt:DOMAIN");
  }
  return {
    ...runningOptions(flags, disks, warn),
    qmp,
    agent: guestAgent,
    fleecing: oneOf("--fleecing", fleecing, ["auto", "classic", "filter"]),
  };
}

/** @throws AppError E_FLAG (usage), E_SIZE (usage). */
export function libvirtOptions(
  flags: QemuFlags,
  domain: string,
  disks: readonly string[],
  warn: (message: string) => void,
): DomainOptions {
  const { connect, guestAgent, fleecing } = flags;
  if (guestAgent === undefined && fleecing === "auto") {
    return { ...runningOptions(flags, disks, warn), domain, uri: connect };
  }
  const message = "--guest-agent and --fleecing are for a QEMU monitor: libvirt has both in its own hands";
  throw new AppError("usage", "E_FLAG", message);
}

function runningOptions(
  flags: QemuFlags,
  disks: readonly string[],
  warn: (message: string) => void,
): Omit<DomainOptions, "domain" | "uri"> {
  const { freeze, freezeBudget, scratchSize } = flags;
  return {
    freeze: oneOf("--freeze", freeze, ["auto", "require", "off"]),
    freezeBudgetMs: secondsOf("--freeze-budget", freezeBudget) * 1000,
    scratchDir: scratchDirectory(flags),
    scratchSizeMax: scratchSize === undefined ? undefined : parseSize(scratchSize),
    disks: disks.length === 0 ? undefined : disks,
    warn,
  };
}

/** @throws AppError E_FLAG (usage) for any other value. */
export function oneOf<T extends string>(flag: string, value: string, allowed: readonly T[]): T {
  const found = allowed.find((one) => one === value);
  if (found !== undefined) return found;
  throw new AppError("usage", "E_FLAG", `Not a value of ${flag}: "${value}"; use ${allowed.join(", ")}`);
}

function secondsOf(flag: string, value: string): number {
  const seconds = Number(value);
  if (seconds > 0 && seconds <= FREEZE_SECONDS_MAX) return seconds;
  const message = `${flag} takes seconds, more than 0 and up to ${FREEZE_SECONDS_MAX}, not "${value}"`;
  throw new AppError("usage", "E_FLAG", message);
}

/** QEMU has its own working directory. */
function absolute(flag: string, path: string): string {
  if (path.startsWith("/")) return path;
  throw new AppError(
    "usage",
    "E_FLAG",
    `${flag} needs an absolute path, not "${path}": QEMU has to find it too`,
  );
}
