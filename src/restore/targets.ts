import { stat } from "node:fs/promises";
import type { DiskTarget } from "../disk/disk.ts";
import { createRawFile, openExistingTarget } from "../disk/raw-target.ts";
import { AppError } from "../errors.ts";
import { createQcow2 } from "../image/qcow2-target.ts";
import { openNbdTarget } from "../nbd/target.ts";
import { isNbdUri, parseNbdUri } from "../nbd/uri.ts";

/** A disk that is being restored, and what makes it final. */
export interface OpenedTarget {
  readonly disk: DiskTarget;
  /** After a complete restore: flushes, and publishes a new file under its name. Until then nothing stands there. */
  finish(signal: AbortSignal): Promise<void>;
  /** Ends it, finished or not; a new file that is not finished is removed. */
  close(): Promise<void>;
}

const QCOW2 = "qcow2:";

/**
 * Opens what `--to` names: `qcow2:PATH`, an NBD URI, a block device, or a path for a raw file.
 *
 * @param size of the disk to come, bytes.
 * @throws AppError E_TARGET_EXISTS, E_TARGET_SIZE, E_TARGET_FORCE (usage), and those of the target itself.
 */
export async function openTarget(
  text: string,
  size: number,
  options: { readonly force: boolean },
  signal: AbortSignal,
): Promise<OpenedTarget> {
  if (text.startsWith(QCOW2)) return await createQcow2(text.slice(QCOW2.length), size, options, signal);
  if (isNbdUri(text)) return await openNbd(text, size, signal);
  const device = await isBlockDevice(text);
  if (device && !options.force) {
    throw new AppError(
      "usage",
      "E_TARGET_FORCE",
      `${text} is a device: all it holds will be lost; give --force if you mean it`,
    );
  }
  const disk = await (device
    ? openExistingTarget(text, size, signal)
    : createRawFile(text, size, options, signal));
  return { disk, finish: (end) => disk.commit(end), close: () => disk.close() };
}

async function openNbd(uri: string, size: number, signal: AbortSignal): Promise<OpenedTarget> {
  const disk = await openNbdTarget(parseNbdUri(uri), {}, signal);
  if (disk.size < size) {
    await disk.close();
    const message = `${disk.name} has ${disk.size} bytes and the disk ${size}; export an image at least as large`;
    throw new AppError("usage", "E_TARGET_SIZE", message, { targetSize: disk.size, diskSize: size });
  }
  return { disk, finish: (end) => disk.flush(end), close: () => disk.close() };
}

async function isBlockDevice(path: string): Promise<boolean> {
  return await stat(path).then(
    (info) => info.isBlockDevice(),
    () => false,
  );
}
