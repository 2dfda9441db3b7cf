import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { AppError } from "../errors.ts";
import type { ServedDisk } from "../nbd/server/served-disk.ts";
import type { Throwaway, WritableDisk } from "../serve/throwaway.ts";
import { mountFuseFile, type StandIn } from "./fuse-file.ts";
import { isMountable, mountFiles, type MountedFiles } from "./kernel-mount.ts";
import { volumesOf, type Volume } from "./part-disk.ts";

/** Everything on the disks that may be a volume, in order. */
export async function allVolumes({ disks }: Throwaway<WritableDisk>, signal: AbortSignal): Promise<Volume[]> {
  const volumes: Volume[] = [];
  for (const [name, disk] of disks) volumes.push(...(await volumesOf(name, disk, signal)));
  return volumes;
}

/**
 * The volume whose files are meant: that of the name, or the only one that has any.
 *
 * @throws AppError E_WHICH_VOLUME (usage), E_NO_VOLUME (notFound).
 */
export function pickVolume(volumes: readonly Volume[], name: string | undefined): Volume {
  const mountable = volumes.filter(({ kind }) => isMountable(kind));
  const all = volumes.map((volume) => `${volume.name} (${volume.kind ?? "unknown"})`).join(", ");
  if (name === undefined && mountable.length > 1) {
    const message = `There are files on several volumes; choose one with --volume: ${all}`;
    throw new AppError("usage", "E_WHICH_VOLUME", message);
  }
  const found = name === undefined ? mountable[0] : volumes.find((volume) => volume.name === name);
  if (found !== undefined && isMountable(found.kind)) return found;
  const what =
    name === undefined ? "No volume" : found === undefined ? `No volume ${name}` : `${name} is none that`;
  const message = `${what} has files that can be looked at; there are: ${all}`;
  throw new AppError("notFound", "E_NO_VOLUME", message);
}

/** Shows a disk or a partition as `FOLDER/disk`. @throws as `mountFuseFile`. */
export async function showRaw(
  served: Throwaway<WritableDisk>,
  name: string,
  disk: ServedDisk,
  folder: string,
  writable: boolean,
  signal: AbortSignal,
): Promise<StandIn> {
  served.offer(name, disk);
  const wish = { uri: served.server.uri(name), path: join(folder, "disk"), writable };
  return await mountFuseFile(wish, signal);
}

/**
 * Shows the files of a volume in a folder.
 *
 * @param scratch a folder of the caller's, for the volume as a file.
 * @param folder where the files are to be; it is made.
 * @throws as `mountFuseFile` and `mountFiles`.
 */
export async function showFiles(
  served: Throwaway<WritableDisk>,
  { name, disk, kind }: Volume,
  scratch: string,
  folder: string,
  signal: AbortSignal,
): Promise<MountedFiles> {
  const raw = await showRaw(served, name, disk, join(scratch, "volumes", name), true, signal);
  try {
    await mkdir(folder, { recursive: true });
    const files = await mountFiles(raw.path, kind!, folder, signal);
    const close = async (): Promise<void> => {
      await files.close().finally(() => raw.close());
    };
    return { folder, close };
  } catch (error) {
    await raw.close();
    throw error;
  }
}
