import { stat } from "node:fs/promises";
import type { DiskTarget } from "../disk/disk.ts";
import { createRawFile, openExistingTarget, openRawDisk } from "../disk/raw-target.ts";
import { AppError } from "../errors.ts";
import { createImage, type ImageFormat } from "../image/image-target.ts";
import { openNbdDisk } from "../nbd/read-write.ts";
import { openNbdTarget } from "../nbd/target.ts";
import { isNbdUri, parseNbdUri } from "../nbd/uri.ts";
import type { InPlaceDisk } from "./in-place.ts";

/** A disk that is being restored, and what makes it final. */
export interface OpenedTarget {
  readonly disk: DiskTarget;
  /** After a complete restore: flushes, and publishes a new file under its name. Until then nothing stands there. */
  finish(signal: AbortSignal): Promise<void>;
  /** Ends it, finished or not; a new file that is not finished is removed. */
  close(): Promise<void>;
}

/** `qcow2:PATH`, `vmdk:PATH`. */
const IMAGE = /^(qcow2|vmdk):(.*)$/s;

/**
 * Opens what `--to` names: `qcow2:PATH`, `vmdk:PATH`, an NBD URI, a block device, or a path for a raw file.
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
  const [, format, path] = IMAGE.exec(text) ?? [];
  if (format !== undefined) return await createImage(format as ImageFormat, path!, size, options, signal);
  if (isNbdUri(text)) return await openNbd(text, size, signal);
  const device = await isBlockDevice(text);
  if (device) expectForce(text, options.force);
  const disk = await (device
    ? openExistingTarget(text, size, signal)
    : createRawFile(text, size, options, signal));
  return { disk, finish: (end) => disk.commit(end), close: () => disk.close() };
}

/** A disk that is there, and is to be put right in its place. */
export interface OpenedInPlace extends InPlaceDisk {
  close(): Promise<void>;
}

/**
 * Opens what `--to` names to be read and written: a raw file of the disk's size, or a block device or an NBD export that
 * may be larger.
 *
 * @param options bitmap: of the NBD export; what is not dirty in it is taken for unchanged.
 * @throws AppError E_TARGET_SIZE, E_TARGET_FORCE, E_IN_PLACE, E_NBD_READ_ONLY (usage), E_NBD_BITMAP (notFound), and those
 *   of the target itself.
 */
export async function openInPlace(
  text: string,
  size: number,
  options: { readonly force: boolean; readonly bitmap: string | undefined },
  signal: AbortSignal,
): Promise<OpenedInPlace> {
  const { bitmap } = options;
  if (isNbdUri(text)) {
    const disk = await openNbdDisk(parseNbdUri(text), bitmap === undefined ? {} : { bitmap }, signal);
    await expectRoom(disk.target, size);
    return { ...disk, close: () => disk.target.close() };
  }
  if (bitmap !== undefined) throw inPlaceError("--bitmap needs an NBD target, which has bitmaps");
  if (IMAGE.test(text)) {
    throw inPlaceError(`${text} cannot be changed in place; export it with qemu-nbd and give its NBD URI`);
  }
  if (await isBlockDevice(text)) expectForce(text, options.force);
  const disk = await openRawDisk(text, size, signal);
  return { ...disk, close: () => disk.target.close() };
}

function inPlaceError(message: string): AppError {
  return new AppError("usage", "E_IN_PLACE", message);
}

/** @throws AppError E_TARGET_FORCE (usage). */
function expectForce(device: string, force: boolean): void {
  if (force) return;
  throw new AppError(
    "usage",
    "E_TARGET_FORCE",
    `${device} is a device: all it holds will be lost; give --force if you mean it`,
  );
}

async function openNbd(uri: string, size: number, signal: AbortSignal): Promise<OpenedTarget> {
  const disk = await openNbdTarget(parseNbdUri(uri), {}, signal);
  await expectRoom(disk, size);
  return { disk, finish: (end) => disk.flush(end), close: () => disk.close() };
}

/** Closes a target that is too small. @throws AppError E_TARGET_SIZE (usage). */
async function expectRoom(disk: DiskTarget, size: number): Promise<void> {
  if (disk.size >= size) return;
  await disk.close();
  const message = `${disk.name} has ${disk.size} bytes and the disk ${size}; export an image at least as large`;
  throw new AppError("usage", "E_TARGET_SIZE", message, { targetSize: disk.size, diskSize: size });
}

async function isBlockDevice(path: string): Promise<boolean> {
  return await stat(path).then(
    (info) => info.isBlockDevice(),
    () => false,
  );
}
