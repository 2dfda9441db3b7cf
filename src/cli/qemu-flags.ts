import type { Command } from "commander";
import { parseSize } from "../bytes/size.ts";
import { AppError } from "../errors.ts";
import { FREEZE_BUDGET_MS, SCRATCH_DIR } from "../jobs/connect-source.ts";
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

/** The flags of a backup of a running QEMU. */
export interface QemuFlags extends ScratchFlag {
  readonly guestAgent?: string;
  readonly freeze: string;
  readonly freezeBudget: string;
  readonly fleecing: string;
  readonly scratchSize?: string;
}

export function addQemuFlags(command: Command): Command {
  return command
    .option(
      "--guest-agent <PATH>",
      "qmp: socket of the guest agent, to freeze the file systems for the instant",
    )
    .option("--freeze <WHEN>", "qmp: auto (if an agent answers), require, or off", "auto")
    .option(
      "--freeze-budget <SECONDS>",
      "qmp: the longest that the guest may stand frozen",
      String(FREEZE_BUDGET_MS / 1000),
    )
    .option(
      "--fleecing <HOW>",
      "qmp: classic, filter (trouble costs the backup, not the guest), or auto",
      "auto",
    )
    .option("--scratch <DIR>", "qmp: for what the guest overwrites meanwhile; QEMU writes there", SCRATCH_DIR)
    .option("--scratch-size <SIZE>", "qmp: the most it may take there (default: all it could need)");
}

/** @throws AppError E_FLAG (usage), E_SIZE (usage). */
export function qemuOptions(
  flags: QemuFlags,
  qmp: string,
  disks: readonly string[],
  warn: (message: string) => void,
): QemuSourceOptions {
  const { guestAgent, freeze, freezeBudget, fleecing, scratchSize } = flags;
  return {
    qmp,
    agent: guestAgent,
    freeze: oneOf("--freeze", freeze, ["auto", "require", "off"]),
    freezeBudgetMs: secondsOf("--freeze-budget", freezeBudget) * 1000,
    fleecing: oneOf("--fleecing", fleecing, ["auto", "classic", "filter"]),
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
