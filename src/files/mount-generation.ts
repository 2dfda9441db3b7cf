import { mkdir, readdir, rmdir } from "node:fs/promises";
import { join } from "node:path";
import { AppError, hasCode, messageOf, systemCode } from "../errors.ts";
import { pause } from "../flow/retry.ts";
import type { Throwaway, WritableDisk } from "../serve/throwaway.ts";
import { isMountable, mountPoints } from "./kernel-mount.ts";
import { allVolumes, showFiles, showRaw } from "./opened-volumes.ts";
import type { Volume } from "./part-disk.ts";

export interface MountWish {
  /** Where everything is to appear, each in a folder of its name; absolute, there, and empty. */
  readonly folder: string;
  /** The disks and partitions themselves, as files called `disk`, instead of the files in them. */
  readonly raw: boolean;
  /** For what is needed on the way; the caller's own. */
  readonly scratch: string;
}

/** What is to be seen where. */
export interface Shown {
  readonly volume: string;
  readonly kind: Volume["kind"];
  readonly path: string;
}

/** How often it is looked whether somebody has unmounted everything. */
const LOOK_MS = 300;

/**
 * Shows what is on disks in a folder, until the signal is aborted or all of it was unmounted by hand.
 *
 * @param ready told once all of it is there.
 * @param skipped told of a volume that is not shown, and why: what holds no files, or cannot be mounted.
 * @throws AppError E_MOUNT_FOLDER, E_NO_FUSE, E_NO_MOUNT (usage); E_NO_VOLUME (notFound): there is nothing to show.
 */
export async function mountUntilOver(
  served: Throwaway<WritableDisk>,
  { folder, raw, scratch }: MountWish,
  ready: (shown: readonly Shown[]) => void,
  skipped: (volume: Volume, why: string) => void,
  signal: AbortSignal,
): Promise<void> {
  await checkFolder(folder);
  const closing: (() => Promise<void>)[] = [];
  const shown: Shown[] = [];
  let failure: AppError | undefined;
  try {
    for (const volume of await wantedVolumes(served, raw, signal)) {
      const { name, disk, kind } = volume;
      if (!raw && !isMountable(kind)) {
        skipped(volume, "nothing that has files, or nothing that is known");
        continue;
      }
      const own = join(folder, name);
      await mkdir(own);
      closing.push(() => removeEmpty(own));
      try {
        const opened = raw
          ? await showRaw(served, name, disk, own, false, signal)
          : await showFiles(served, volume, scratch, own, signal);
        closing.push(() => opened.close());
      } catch (error) {
        if (!hasCode(error, "E_NO_MOUNT")) throw error;
        failure ??= error;
        skipped(volume, error.message);
        continue;
      }
      shown.push({ volume: name, kind, path: raw ? join(own, "disk") : own });
    }
    if (shown.length === 0) throw failure ?? nothingToShow();
    ready(shown);
    await unmountedByHand(folder, shown, signal);
  } finally {
    await closeAll(closing.reverse());
  }
}

/** Raw: also disks that have partitions. */
async function wantedVolumes(
  served: Throwaway<WritableDisk>,
  raw: boolean,
  signal: AbortSignal,
): Promise<Volume[]> {
  const volumes = await allVolumes(served, signal);
  if (!raw) return volumes;
  const whole = [...served.disks]
    .filter(([name]) => volumes.every((volume) => volume.name !== name))
    .map(([name, disk]) => ({ name, disk, kind: undefined }));
  return [...whole, ...volumes];
}

/** Resolves when nothing of it is mounted any more, or the signal is aborted. */
async function unmountedByHand(folder: string, shown: readonly Shown[], signal: AbortSignal): Promise<void> {
  const places = shown.map(({ volume }) => join(folder, volume));
  for (;;) {
    const mounted = await mountPoints();
    if (!places.some((place) => mounted.has(place))) return;
    await pause(LOOK_MS, signal).catch(() => undefined);
    if (signal.aborted) return;
  }
}

/** Each, also when one before it fails. @throws what failed first. */
async function closeAll(closing: readonly (() => Promise<void>)[]): Promise<void> {
  const failures: unknown[] = [];
  for (const close of closing) await close().catch((error: unknown) => void failures.push(error));
  if (failures.length > 0) throw failures[0];
}

/** Whoever unmounted it may have removed it too. */
async function removeEmpty(folder: string): Promise<void> {
  await rmdir(folder).catch((error: unknown) => {
    if (systemCode(error) !== "ENOENT") throw error;
  });
}

async function checkFolder(folder: string): Promise<void> {
  let entries: string[];
  try {
    entries = await readdir(folder);
  } catch (error) {
    const why = systemCode(error) === "ENOENT" ? "it is not there" : messageOf(error);
    throw new AppError("usage", "E_MOUNT_FOLDER", `Nothing can be mounted in ${folder}: ${why}`, {}, error);
  }
  if (entries.length > 0) throw new AppError("usage", "E_MOUNT_FOLDER", `${folder} is not empty`);
}

function nothingToShow(): AppError {
  const message =
    "There is no file system that can be shown; mount --raw shows disks and partitions as files";
  return new AppError("notFound", "E_NO_VOLUME", message);
}
