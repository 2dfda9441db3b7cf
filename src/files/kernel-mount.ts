import { readFile } from "node:fs/promises";
import { AppError, messageOf } from "../errors.ts";
import { runProgram } from "../flow/programs.ts";
import { pause } from "../flow/retry.ts";
import type { FileSystemKind } from "./file-system.ts";

/** A file system that is mounted. */
export interface MountedFiles {
  readonly folder: string;
  /** Unmounts it, unless that was done, also when somebody still uses it. Safe to call twice. */
  close(): Promise<void>;
}

/** What the kernel calls them. */
const TYPES: Readonly<Partial<Record<FileSystemKind, string>>> = {
  ext: "ext4",
  xfs: "xfs",
  btrfs: "btrfs",
  fat: "vfat",
  ntfs: "ntfs3",
};

/** What a guest has put there must not act on this host. */
const OPTIONS = "ro,nosuid,nodev,noexec";
/** How long unmounting waits for those who use it. */
const BUSY_MS = 3000;
const AGAIN_MS = 100;

/** True for what the kernel can show. */
export function isMountable(kind: FileSystemKind | undefined): kind is FileSystemKind {
  return kind !== undefined && TYPES[kind] !== undefined;
}

/**
 * Mounts a file system read-only, by a loop device. The file is one that may be written, so that the kernel can replay a
 * journal.
 *
 * @param folder empty.
 * @throws AppError E_NO_MOUNT (usage): not allowed here, or the kernel does not take it; the signal's reason.
 */
export async function mountFiles(
  file: string,
  kind: FileSystemKind,
  folder: string,
  signal: AbortSignal,
): Promise<MountedFiles> {
  const device = await attachLoop(file, signal);
  try {
    await runProgram("mount", ["-t", TYPES[kind]!, "-o", OPTIONS, device, folder], signal);
  } catch (error) {
    await detachLoop(device);
    signal.throwIfAborted();
    throw cannotMount(`the kernel does not mount it as ${TYPES[kind]!}`, error);
  }
  await detachLoop(device); // goes with the mount from now on, whoever unmounts it
  return { folder, close: () => unmount(folder) };
}

async function attachLoop(file: string, signal: AbortSignal): Promise<string> {
  try {
    return (await runProgram("losetup", ["--find", "--show", "--", file], signal)).trim();
  } catch (error) {
    signal.throwIfAborted();
    throw cannotMount("no loop device can be had; that takes root", error);
  }
}

/** By lines of /proc/self/mounts: folders on which something is mounted. */
export async function mountPoints(): Promise<ReadonlySet<string>> {
  const lines = (await readFile("/proc/self/mounts", "utf8")).split("\n");
  // proc(5): blanks and the like are written as octal numbers
  const unescaped = (text: string): string =>
    text.replace(/\\(\d{3})/g, (_, digits: string) => String.fromCharCode(parseInt(digits, 8)));
  return new Set(lines.map((line) => unescaped(line.split(" ")[1] ?? "")));
}

async function unmount(folder: string): Promise<void> {
  const late = performance.now() + BUSY_MS;
  const unheard = new AbortController().signal;
  while ((await mountPoints()).has(folder)) {
    const busy = performance.now() > late;
    try {
      await runProgram("umount", [...(busy ? ["--lazy"] : []), "--", folder], unheard);
    } catch (error) {
      if (busy) throw error;
      await pause(AGAIN_MS, unheard);
    }
  }
}

/** One that is in use goes as soon as it is not. */
async function detachLoop(device: string): Promise<void> {
  await runProgram("losetup", ["--detach", device], new AbortController().signal).catch(() => undefined);
}

function cannotMount(why: string, cause: unknown): AppError {
  const message =
    `The file system cannot be mounted: ${why}; blockhaul mount --raw shows disks as files instead, for other ` +
    `programs (${messageOf(cause)})`;
  return new AppError("usage", "E_NO_MOUNT", message, {}, cause);
}
