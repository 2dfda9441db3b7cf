import { chown, open, stat, statfs } from "node:fs/promises";
import { dirname } from "node:path";
import { formatSize, KiB, MiB } from "../bytes/size.ts";
import { AppError } from "../errors.ts";
import { runProgram } from "../flow/programs.ts";
import type { RunNames } from "./names.ts";
import type { QmpClient } from "./qmp/client.ts";

/** What one disk's old data may take. */
export interface ScratchShare {
  /** Bytes that its image may come to take. */
  readonly bytes: number;
  /** Bytes into the image at which QEMU is to tell us; undefined: it cannot run out. */
  readonly threshold: number | undefined;
}

/** Of the folder's free space, what is left for others. */
const ROOM_LEFT = 0.05;

/** A run is not worth beginning with less than this for a disk, in bytes. */
const SHARE_MIN = 16 * MiB;

/** The part of a share behind the threshold: what the guest may write until everything is taken down. */
const MARGIN = 1 / 8;

/** The most that the image of a disk can take, in bytes: its data, and qcow2's tables with room to spare. */
export function scratchSizeOf(diskSize: number): number {
  return diskSize + Math.ceil(diskSize / 64) + MiB;
}

/**
 * Divides the room among the disks, each in proportion to its size.
 *
 * @param free bytes free in the scratch folder.
 * @param sizeMax bytes that the run may take there; undefined: as much as it could ever need.
 * @throws AppError E_SCRATCH_SPACE (full).
 */
export function forecastScratch(
  folder: string,
  diskSizes: readonly number[],
  free: number,
  sizeMax: number | undefined,
): ScratchShare[] {
  const needs = diskSizes.map(scratchSizeOf);
  const need = sum(needs);
  const room = Math.floor(free * (1 - ROOM_LEFT));
  const wanted = Math.min(sizeMax ?? need, need);
  const least = sum(needs.map((one) => Math.min(one, SHARE_MIN)));
  if (room < (sizeMax === undefined ? least : wanted)) {
    throw spaceError(folder, sizeMax === undefined ? least : wanted, room);
  }
  if (wanted < least) throw tooSmallError(wanted, least);
  const budget = Math.min(wanted, room);
  if (budget >= need) return needs.map((bytes) => ({ bytes, threshold: undefined }));
  return needs.map((one) => {
    const bytes = Math.floor((one / need) * (budget / KiB)) * KiB;
    return { bytes, threshold: Math.floor(bytes * (1 - MARGIN)) };
  });
}

/** Bytes free in the folder for whoever runs this. */
export async function freeIn(folder: string): Promise<number> {
  const { bavail, bsize } = await statfs(folder);
  return bavail * bsize;
}

/** An image for the old data of one disk. */
export interface Scratch {
  readonly path: string;
  /** As `ScratchShare`. */
  readonly threshold: number | undefined;
}

/** What a run's scratch is to be. */
export interface ScratchOptions {
  readonly scratchDir: string;
  /** Bytes that the run may take there; undefined: as much as it could ever need, if there is so much. */
  readonly scratchSizeMax?: number | undefined;
  /** The monitor's socket; it is its QEMU's user who must be able to open the images. */
  readonly qmp: string;
  warn(message: string): void;
}

/**
 * Makes the images of a run, after a look at the room there is. Takes as long as the file system likes.
 *
 * @throws AppError E_PROGRAM_MISSING, E_SCRATCH_SIZE (usage), E_PROGRAM (source), E_SCRATCH_SPACE (full).
 */
export async function makeScratch(
  names: RunNames,
  disks: readonly { readonly index: number; readonly disk: { readonly size: number } }[],
  options: ScratchOptions,
  signal: AbortSignal,
): Promise<Scratch[]> {
  const { scratchDir, scratchSizeMax, qmp, warn } = options;
  const sizes = disks.map(({ disk }) => disk.size);
  const shares = forecastScratch(scratchDir, sizes, await freeIn(scratchDir), scratchSizeMax);
  const bounded = shares.filter((share) => share.threshold !== undefined);
  if (bounded.length > 0 && scratchSizeMax === undefined) {
    const room = formatSize(sum(bounded.map((share) => share.bytes)));
    warn(
      `The scratch folder ${scratchDir} has room for ${room}: a backup during which the guest writes more ends`,
    );
  }
  const made: Scratch[] = [];
  let reserved = true;
  for (const [at, { index, disk }] of disks.entries()) {
    const path = names.scratchFile(scratchDir, index);
    reserved = (await createScratch(path, disk.size, shares[at]!, qmp, signal)) && reserved;
    made.push({ path, threshold: shares[at]!.threshold });
  }
  if (!reserved)
    warn(`No space could be set aside in ${scratchDir}: see that it does not run full meanwhile`);
  return made;
}

/**
 * Makes an empty image for the old data of a disk and sets its space aside, so that the file system cannot run out
 * of it: QEMU would stop the VM.
 *
 * Its qcow2 has no preallocation: clusters that are allocated hide the disk behind the image, and read as zeros.
 *
 * @param path must not exist.
 * @param owner a file of QEMU's user (the monitor's socket), to whom it is given if we may.
 * @returns false when no space could be set aside.
 */
async function createScratch(
  path: string,
  diskSize: number,
  share: ScratchShare,
  owner: string,
  signal: AbortSignal,
): Promise<boolean> {
  await (await open(path, "wx", 0o600)).close(); // a guest's data is not for everybody
  await runProgram("qemu-img", ["create", "-q", "-f", "qcow2", path, String(diskSize)], signal);
  const [{ uid, gid }, ours] = await Promise.all([stat(owner), stat(path)]);
  if (uid !== ours.uid) await chown(path, uid, gid).catch(() => undefined); // QEMU says so when it cannot open it
  return await reserve(path, share.bytes, signal);
}

/**
 * Node has no fallocate, and writing zeros in its place would cost as many writes as there is to reserve: so the
 * program of that name (util-linux) does it.
 *
 * @returns false when that is not possible here.
 * @throws AppError E_SCRATCH_SPACE (full); the signal's reason.
 */
async function reserve(path: string, bytes: number, signal: AbortSignal): Promise<boolean> {
  try {
    await runProgram("fallocate", ["--keep-size", "--length", String(bytes), path], signal);
    return true;
  } catch {
    signal.throwIfAborted();
    const folder = dirname(path);
    const free = await freeIn(folder);
    if (free < bytes) throw spaceError(folder, bytes, free);
    return false; // the file system cannot, or the program is not there
  }
}

/**
 * Opens the image in QEMU, as `bk-<token>-s<N>` over the file `bk-<token>-f<N>`.
 *
 * @param backing the node that is read where the image holds nothing; undefined: zeros are.
 */
export async function attachScratch(
  client: QmpClient,
  names: RunNames,
  index: number,
  image: { readonly path: string; readonly threshold: number | undefined; readonly backing?: string },
  signal: AbortSignal,
): Promise<void> {
  const [node, file] = [names.node("s", index), names.node("f", index)];
  const { path, threshold, backing } = image;
  await client.execute(
    "blockdev-add",
    {
      "node-name": file,
      driver: "file",
      filename: path,
      cache: { "no-flush": true }, // worthless after a crash
    },
    signal,
  );
  await client.execute(
    "blockdev-add",
    { "node-name": node, driver: "qcow2", file, ...(backing !== undefined && { backing }) },
    signal,
  );
  if (threshold === undefined) return;
  await client.execute(
    "block-set-write-threshold",
    { "node-name": file, "write-threshold": threshold },
    signal,
  );
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, one) => total + one, 0);
}

function spaceError(folder: string, needed: number, room: number): AppError {
  return new AppError(
    "full",
    "E_SCRATCH_SPACE",
    `The scratch folder ${folder} has room for ${formatSize(Math.max(room, 0))} and ${formatSize(needed)} are needed; ` +
      "free some, choose another with --scratch, or bound it with --scratch-size",
    { folder, needed, room },
  );
}

function tooSmallError(size: number, least: number): AppError {
  return new AppError(
    "usage",
    "E_SCRATCH_SIZE",
    `--scratch-size ${formatSize(size)} is too small for these disks; the least is ${formatSize(least)}`,
    { size, least },
  );
}
