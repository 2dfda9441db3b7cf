import { constants } from "node:fs";
import { link, mkdir, open, rename, stat, unlink, type FileHandle } from "node:fs/promises";
import { dirname } from "node:path";
import { KiB, MiB } from "../bytes/size.ts";
import { AppError, systemCode } from "../errors.ts";
import { pause } from "../flow/retry.ts";

/**
 * Bytes a single write moves; between two of them an abort is noticed. Not more: ext4 with large folios takes two to five
 * times the CPU for the same bytes in calls of 512 KiB to 4 MiB.
 */
const WRITE_STEP = 256 * KiB;
/** Bytes a single read moves. Each is handed to a thread and back, which for 256 KiB costs half as much as the reading. */
const READ_STEP = MiB;

const CLAIM_WAIT_MS = 50;
const CLAIM_ATTEMPTS_MAX = 100;

const NO_HARD_LINKS: readonly string[] = ["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EMLINK"];
/** A file system that cannot sync a directory says so; there is nothing more to be done on it. */
const NO_DIRECTORY_SYNC: readonly string[] = ["EINVAL", "ENOTSUP", "EOPNOTSUPP", "EBADF"];

/** Writes all of `bytes` at `position` of the file. */
export async function writeAll(
  file: FileHandle,
  bytes: Uint8Array,
  position: number,
  signal: AbortSignal,
): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    signal.throwIfAborted();
    const length = Math.min(WRITE_STEP, bytes.length - done);
    done += (await file.write(bytes, done, length, position + done)).bytesWritten;
  }
}

/** Fills `into` from `position` on. @returns bytes read; fewer than asked for when the file ends before. */
export async function readAll(
  file: FileHandle,
  into: Uint8Array,
  position: number,
  signal: AbortSignal,
): Promise<number> {
  let done = 0;
  while (done < into.length) {
    signal.throwIfAborted();
    const length = Math.min(READ_STEP, into.length - done);
    const { bytesRead } = await file.read(into, done, length, position + done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return done;
}

/** Makes the entries of a directory durable. An error is final: the kernel forgets what it could not write. */
export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await directory.sync();
  } catch (error) {
    if (!NO_DIRECTORY_SYNC.includes(systemCode(error) ?? "")) throw error;
  } finally {
    await directory.close();
  }
}

/**
 * Makes `path` with all its parents, and those durable up to and including the entry of `path`.
 *
 * Directories from `root` down are synced even when they are there: another process may have made them a moment
 * ago and not have come to its own sync yet.
 */
export async function makeDurableDirectory(root: string, path: string): Promise<void> {
  const made = await mkdir(path, { recursive: true });
  const stop = made === undefined || made.startsWith(`${root}/`) ? root : dirname(made);
  for (let child = path; child !== stop;) {
    child = dirname(child);
    await syncDirectory(child);
  }
}

/** The call that gives a file a second name; a parameter because some file systems refuse it. */
export type Link = (existing: string, added: string) => Promise<void>;

/**
 * Gives the finished, synced file `temporary` its name `target` and makes that durable. Never replaces a file.
 *
 * On a file system without hard links (FAT, some network and FUSE mounts) the name is claimed first by creating
 * `claim` exclusively; the holder looks whether the target exists and renames. No other name than `target` is ever
 * visible, and a claim left by a crash blocks only this one name until it is cleaned up by age.
 *
 * @returns "taken" when `target` exists; `temporary` is then still there. On NFS it may be this very file: a link whose
 *   reply was lost is sent again by the kernel, and then finds its own name taken.
 */
export async function publish(
  temporary: string,
  target: string,
  claim: string,
  signal: AbortSignal,
  makeLink: Link = link,
): Promise<"published" | "taken"> {
  try {
    await makeLink(temporary, target);
  } catch (error) {
    const code = systemCode(error) ?? "";
    if (code === "EEXIST") return "taken";
    if (!NO_HARD_LINKS.includes(code)) throw error;
    return publishByClaim(temporary, target, claim, signal);
  }
  await syncDirectory(dirname(target));
  await unlink(temporary);
  return "published";
}

async function publishByClaim(
  temporary: string,
  target: string,
  claim: string,
  signal: AbortSignal,
): Promise<"published" | "taken"> {
  const held = await takeClaim(claim, target, signal);
  if (!held) return "taken";
  try {
    if (await exists(target)) return "taken";
    await rename(temporary, target);
    await syncDirectory(dirname(target));
    return "published";
  } finally {
    await unlink(claim);
  }
}

/** @returns false when the target came to be while somebody else held the claim. */
async function takeClaim(claim: string, target: string, signal: AbortSignal): Promise<boolean> {
  for (let attempt = 1; ; attempt++) {
    try {
      await (await open(claim, "wx")).close();
      return true;
    } catch (error) {
      if (systemCode(error) !== "EEXIST") throw error;
    }
    if (await exists(target)) return false;
    if (attempt === CLAIM_ATTEMPTS_MAX) {
      const message = `${target} is being written by somebody else; if nobody does, delete ${claim}`;
      throw new AppError("locked", "E_EXISTS", message);
    }
    await pause(CLAIM_WAIT_MS, signal);
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if (systemCode(error) === "ENOENT") return false;
    throw error;
  }
}

/** True when both files hold the same bytes. */
export async function sameContent(one: string, other: string, signal: AbortSignal): Promise<boolean> {
  await using a = await open(one, "r");
  await using b = await open(other, "r");
  const { size } = await a.stat();
  if (size !== (await b.stat()).size) return false;
  const [left, right] = [Buffer.allocUnsafe(MiB), Buffer.allocUnsafe(MiB)];
  for (let position = 0; position < size; position += MiB) {
    const length = await readAll(a, left, position, signal);
    await readAll(b, right, position, signal);
    if (!left.subarray(0, length).equals(right.subarray(0, length))) return false;
  }
  return true;
}
