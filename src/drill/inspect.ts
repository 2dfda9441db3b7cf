import { join } from "node:path";
import { AppError, hasCode } from "../errors.ts";
import { mountFuseFile, type StandIn } from "../files/fuse-file.ts";
import { volumesOf, type Volume } from "../files/part-disk.ts";
import { copySparsely } from "../files/sparse-copy.ts";
import type { Throwaway } from "../serve/throwaway.ts";
import { checkVolume, isCheckable, type CheckedVolume } from "./check-files.ts";
import type { WatchedDisk } from "./watched-disk.ts";

/**
 * Checks the file systems of disks from outside: each as a file, by nbdfuse; where that cannot be, as a local copy.
 *
 * @param folder for what is mounted or copied.
 * @throws AppError E_DRILL_FILES (source): one is damaged; E_DRILL_NO_CHECK (source): none could be checked; what reading
 *   a disk throws; the signal's reason.
 */
export async function inspectFileSystems(
  served: Throwaway<WatchedDisk>,
  folder: string,
  checked: (volume: CheckedVolume) => void,
  signal: AbortSignal,
): Promise<void> {
  const found: CheckedVolume[] = [];
  for (const [name, disk] of served.disks) {
    for (const volume of await volumesOf(name, disk, signal)) {
      const result = isCheckable(volume)
        ? await checkAsFile(volume, served, folder, signal)
        : await checkVolume(volume, "", signal);
      found.push(result);
      checked(result);
    }
  }
  const damaged = found.filter(({ outcome }) => outcome === "damaged");
  if (damaged.length > 0) throw failed("E_DRILL_FILES", "damaged file systems", damaged);
  if (!found.some(({ outcome }) => outcome === "sound"))
    throw failed("E_DRILL_NO_CHECK", "no file system could be checked", found);
}

async function checkAsFile(
  volume: Volume,
  served: Throwaway<WatchedDisk>,
  folder: string,
  signal: AbortSignal,
): Promise<CheckedVolume> {
  served.offer(volume.name, volume.disk);
  const path = join(folder, "volumes", volume.name, "disk");
  let file: StandIn | undefined;
  try {
    file = await mountFuseFile({ uri: served.server.uri(volume.name), path, writable: true }, signal);
  } catch (error) {
    if (!hasCode(error, "E_NO_FUSE")) throw error;
    await copySparsely(volume.disk, path, signal);
  }
  try {
    return await checkVolume(volume, path, signal);
  } finally {
    await file?.close();
  }
}

function failed(
  code: "E_DRILL_FILES" | "E_DRILL_NO_CHECK",
  what: string,
  volumes: readonly CheckedVolume[],
): AppError {
  const each = volumes.map(({ volume, kind, detail }) => `${volume} (${kind ?? "unknown"}): ${detail}`);
  return new AppError("source", code, `The drill found ${what}: ${each.join("; ")}`.slice(0, 2000));
}
