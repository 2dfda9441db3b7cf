import { execFile } from "node:child_process";
import { systemCode } from "../errors.ts";
import type { FileSystemKind } from "../files/file-system.ts";
import type { Volume } from "../files/part-disk.ts";

/** What came of checking a file system. */
export interface CheckedVolume {
  readonly volume: string;
  readonly kind: FileSystemKind | undefined;
  /** `unchecked`: nothing was found out, and `detail` says why. */
  readonly outcome: "sound" | "damaged" | "unchecked";
  readonly detail: string;
}

interface Checker {
  readonly program: string;
  /** The Debian package. */
  readonly from: string;
  /** Puts right what a machine that was switched off leaves: on the overlay, so that nothing is lost by it. */
  readonly replay?: (volume: Volume, run: Run, signal: AbortSignal) => Promise<unknown>;
  readonly args: readonly string[];
  /** Exit codes that mean that something is wrong in the file system. */
  readonly damaged: readonly number[];
  /** Words after which the exit code means nothing, and what to say. */
  readonly cannotTell?: readonly [RegExp, string];
}

type Run = (program: string, args: readonly string[]) => Promise<Finished>;

interface Finished {
  readonly code: number | undefined;
  readonly output: string;
}

/** Of one check; large file systems take long. The drill's own limit comes first. */
const OUTPUT_MAX = 1024 * 1024;
/** In the superblock, at 1024 (Linux, Documentation/filesystems/ext4/super.rst). */
const EXT_INCOMPATIBLE_AT = 1024 + 0x60;
const EXT_NEEDS_RECOVERY = 0x4;
/** Where checkers are, and users without root do not look. */
const FOLDERS = ["", "/usr/sbin/", "/sbin/"];

const CHECKERS: Readonly<Partial<Record<FileSystemKind, Checker>>> = {
  ext: {
    program: "e2fsck",
    from: "e2fsprogs",
    replay: replayExtJournal,
    args: ["-fn"],
    damaged: [4, 8, 12], // 8: it cannot even be opened; a disk that fails ends the drill before
  },
  xfs: {
    program: "xfs_repair",
    from: "xfsprogs",
    args: ["-n", "-f"],
    damaged: [1],
    cannotTell: [/valuable metadata changes in a log/, "its log is to be replayed first, which a boot does"],
  },
  fat: { program: "fsck.fat", from: "dosfstools", replay: clearFatDirt, args: ["-n"], damaged: [1] },
  btrfs: { program: "btrfs", from: "btrfs-progs", args: ["check", "--readonly"], damaged: [1] },
};

/**
 * Checks a file system, on an overlay: journals are replayed first.
 *
 * @param path the volume as a file that may be written.
 * @throws the signal's reason; what reading the disk throws.
 */
export async function checkVolume(volume: Volume, path: string, signal: AbortSignal): Promise<CheckedVolume> {
  const { name, kind } = volume;
  const checker = kind === undefined ? undefined : CHECKERS[kind];
  const told = (outcome: CheckedVolume["outcome"], detail: string): CheckedVolume => ({
    volume: name,
    kind,
    outcome,
    detail,
  });
  if (checker === undefined) return told("unchecked", "nothing checks it");
  const { program, from, replay, args, damaged, cannotTell } = checker;
  const run: Run = (tool, toolArgs) => runChecker(tool, [...toolArgs, path], signal);
  await replay?.(volume, run, signal);
  const { code, output } = await run(program, args);
  if (code === undefined)
    return told("unchecked", `${program} is not installed; on Debian: apt install ${from}`);
  if (cannotTell?.[0].test(output) === true) return told("unchecked", cannotTell[1]);
  if (code === 0) return told("sound", `${program} found nothing wrong`);
  const said = firstLine(output);
  if (damaged.includes(code)) return told("damaged", `${program}: ${said}`);
  return told("unchecked", `${program} ended with ${code}: ${said}`);
}

/** True for what has a checker, whether it is installed or not. */
export function isCheckable({ kind }: Volume): boolean {
  return kind !== undefined && CHECKERS[kind] !== undefined;
}

/**
 * Not with -y: that would put damage right before it is looked for. And only where a journal asks for it: what is
 * mounted while it is backed up has one that does.
 */
async function replayExtJournal({ disk }: Volume, run: Run, signal: AbortSignal): Promise<void> {
  const features = Buffer.alloc(4);
  await disk.read(EXT_INCOMPATIBLE_AT, features, signal);
  if ((features.readUInt32LE() & EXT_NEEDS_RECOVERY) !== 0) await run("e2fsck", ["-p", "-E", "journal_only"]);
}

/** The bit that says "mounted", which every FAT of a machine that runs has set; no more than that. */
async function clearFatDirt({ disk }: Volume, _: Run, signal: AbortSignal): Promise<void> {
  const sector = Buffer.alloc(512);
  await disk.read(0, sector, signal);
  const at = sector.toString("latin1", 82, 87) === "FAT32" ? 0x41 : 0x25;
  sector[at]! &= ~1;
  await disk.write!(0, sector, signal);
}

async function runChecker(program: string, args: readonly string[], signal: AbortSignal): Promise<Finished> {
  for (const folder of FOLDERS) {
    const finished = await new Promise<Finished>((resolve, reject) => {
      const options = { signal, maxBuffer: OUTPUT_MAX };
      execFile(folder + program, args, options, (error, stdout, stderr) => {
        if (signal.aborted) reject(signal.reason);
        else if (error === null) resolve({ code: 0, output: stdout + stderr });
        else if (typeof error.code === "number") resolve({ code: error.code, output: stdout + stderr });
        else if (systemCode(error) === "ENOENT") resolve({ code: undefined, output: "" });
        else reject(error);
      });
    });
    if (finished.code !== undefined) return finished;
  }
  return { code: undefined, output: "" };
}

/** The first line that says something of the file system: programs begin with their own name and version. */
function firstLine(output: string): string {
  const lines = output.split("\n").map((line) => line.trim());
  const telling = lines.filter(
    (line) => line !== "" && !/^(?:e2fsck \d|fsck\.fat \d|Pass \d|Phase \d|-{5})/.test(line),
  );
  return (telling[0] ?? "it says nothing").slice(0, 300);
}
