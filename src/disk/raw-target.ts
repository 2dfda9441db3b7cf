import { randomBytes } from "node:crypto";
import { link, open, realpath, rename, rm, stat, type FileHandle } from "node:fs/promises";
import { dirname, join } from "node:path";
import { AppError, messageOf, systemCode } from "../errors.ts";
import { BlockMap } from "./block-map.ts";
import type { DiskTarget, Range } from "./disk.ts";
import { kindOfPath, openFailed, openRawFile, RAW_BLOCK_SIZE, RawFile } from "./raw-file.ts";

/** A fresh file remembers what was written in blocks of this many bytes: 8 MiB of memory for 64 TiB. */
const WRITTEN_BLOCK = 1024 * 1024;

/** A disk written into a raw file or block device. Nothing counts before `commit`. */
export interface RawFileTarget extends DiskTarget {
  /**
   * Flushes and publishes: a new file gets its name, an existing one its exact length. Call it once, after the
   * last write has settled.
   *
   * @throws AppError E_TARGET_EXISTS (usage), E_TARGET_FULL (full), E_DISK_WRITE, E_TARGET_NAME (source).
   */
  commit(signal: AbortSignal): Promise<void>;

  /** Without `commit` before it, a new file is removed again; an existing one stays as far as it was written. */
  close(): Promise<void>;
}

/**
 * A new sparse file. Until `commit` it stands beside its place under a hidden name that ends in ".partial"
 * (mode 0600), so a failed restore leaves nothing that looks complete.
 *
 * @param size of the disk, bytes.
 * @param options force: replace an existing file, which stays untouched until `commit` and then passes on its
 *   owner and mode. A symbolic link to it stays a link.
 * @throws AppError E_TARGET_EXISTS, E_DISK_KIND (usage), E_DISK_MISSING (notFound: no such folder),
 *   E_DISK_PERMISSION (credentials), E_TARGET_FULL (full).
 */
export async function createRawFile(
  path: string,
  size: number,
  options: { readonly force: boolean },
  signal: AbortSignal,
): Promise<RawFileTarget> {
  signal.throwIfAborted();
  const kind = await kindOfPath(path);
  if (kind === "device" || kind === "other") {
    throw new AppError("usage", "E_DISK_KIND", `${path} exists and is not a file; it cannot be replaced`);
  }
  if (kind === "file" && !options.force) throw targetExists(path);
  const place = kind === "file" ? await realpath(path) : path;
  const partial = join(dirname(place), `.blockhaul-${randomBytes(6).toString("hex")}.partial`);
  const handle = await open(partial, "wx+", 0o600).catch((error: unknown) => {
    throw systemCode(error) === "ENOENT" ? openFailed(dirname(place), error) : openFailed(place, error);
  });
  const target = new FreshFile(new RawFile(partial, "file", size, handle), place, options.force);
  try {
    await target.grow();
    return target;
  } catch (error) {
    await target.close();
    throw error;
  }
}

/**
 * An existing file or block device, written in place; zeros included, unless the place reads as zeros already.
 *
 * A file ends up exactly as long as the disk: a shorter one grows now, a longer one is cut by `commit`. A device
 * may be larger; what lies behind the disk's end is left alone. A device that is mounted is refused.
 *
 * @throws AppError E_TARGET_SIZE (usage) when the device is smaller than the disk; as `openRawFile`.
 */
export async function openExistingTarget(
  path: string,
  size: number,
  signal: AbortSignal,
): Promise<RawFileTarget> {
  signal.throwIfAborted();
  const file = await openRawFile(path, "write");
  try {
    if (file.kind === "device" && file.size < size) {
      const message = `${path} has ${file.size} bytes and the disk ${size}; choose a target at least as large`;
      throw new AppError("usage", "E_TARGET_SIZE", message, { path, targetSize: file.size, diskSize: size });
    }
    if (file.kind === "file" && file.size < size) await file.resize(size);
    return new ExistingTarget(file, size);
  } catch (error) {
    await file.handle.close();
    throw error;
  }
}

class ExistingTarget implements RawFileTarget {
  readonly zeroed = false;
  readonly blockSize = RAW_BLOCK_SIZE;
  readonly size: number;
  readonly #file: RawFile;

  constructor(file: RawFile, size: number) {
    this.#file = file;
    this.size = size;
  }

  get name(): string {
    return this.#file.path;
  }

  async write(offset: number, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    checkInside(this, { offset, length: bytes.length });
    await this.#file.write(offset, bytes, signal);
  }

  async zero(offset: number, length: number, signal: AbortSignal): Promise<void> {
    checkInside(this, { offset, length });
    await this.#file.zero({ offset, length }, false, signal);
  }

  async flush(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    await this.#file.flush();
  }

  async commit(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (this.#file.kind === "file") await this.#file.resize(this.size);
    await this.#file.flush();
  }

  async close(): Promise<void> {
    await this.#file.handle.close();
  }
}

class FreshFile implements RawFileTarget {
  readonly zeroed = true;
  readonly blockSize = RAW_BLOCK_SIZE;
  readonly name: string;
  readonly #file: RawFile;
  readonly #replace: boolean;
  readonly #written: BlockMap;
  #state: "partial" | "published" | "gone" = "partial";

  constructor(file: RawFile, name: string, replace: boolean) {
    this.#file = file;
    this.name = name;
    this.#replace = replace;
    this.#written = new BlockMap(file.size, WRITTEN_BLOCK);
  }

  get size(): number {
    return this.#file.size;
  }

  /** Gives the file its length, all of it a hole. */
  async grow(): Promise<void> {
    await this.#file.resize(this.size);
  }

  async write(offset: number, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    checkInside(this, { offset, length: bytes.length });
    this.#written.mark({ offset, length: bytes.length });
    await this.#file.write(offset, bytes, signal);
  }

  /** Costs nothing where nothing was written yet. */
  async zero(offset: number, length: number, signal: AbortSignal): Promise<void> {
    checkInside(this, { offset, length });
    for (const part of this.#written.extents({ offset, length })) {
      if (part.dirty) await this.#file.zero(part, false, signal);
    }
  }

  async flush(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    await this.#file.flush();
  }

  async commit(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    try {
      if (this.#replace) await takeOver(this.#file.handle, this.name);
      await this.#file.flush();
      await (this.#replace ? rename(this.#file.path, this.name) : renameNew(this.#file.path, this.name));
      this.#state = "published";
      await syncFolder(dirname(this.name));
    } catch (error) {
      if (error instanceof AppError) throw error;
      const message = `Cannot give the restored disk its name ${this.name}: ${messageOf(error)}`;
      throw new AppError("source", "E_TARGET_NAME", message, { path: this.name }, error);
    }
  }

  async close(): Promise<void> {
    await this.#file.handle.close();
    if (this.#state !== "partial") return;
    this.#state = "gone";
    await rm(this.#file.path, { force: true });
  }
}

/** @throws AppError E_TARGET_RANGE (bug). */
function checkInside(target: DiskTarget, range: Range): void {
  const { offset, length } = range;
  if (offset >= 0 && length >= 0 && offset + length <= target.size) return;
  const message = `Tried to write ${length} bytes at ${offset} of ${target.name}, which has ${target.size}`;
  throw new AppError("bug", "E_TARGET_RANGE", message);
}

/** The owner and mode of the file that is about to be replaced, if there is one still. */
async function takeOver(handle: FileHandle, path: string): Promise<void> {
  const old = await stat(path).catch(() => undefined);
  if (old === undefined) return;
  await handle.chmod(old.mode & 0o7777);
  // Only root may give a file away; for everybody else the new file is theirs, as with any copy.
  await handle.chown(old.uid, old.gid).catch(() => undefined);
}

/** Renames, but never over a file that came into being meanwhile. */
async function renameNew(from: string, to: string): Promise<void> {
  try {
    await link(from, to);
  } catch (error) {
    if (systemCode(error) === "EEXIST") throw targetExists(to, error);
    // A file system without hard links: what remains is to look first.
    if ((await kindOfPath(to)) !== "absent") throw targetExists(to);
    await rename(from, to);
    return;
  }
  await rm(from);
}

/** Makes a new name in the folder survive a power failure. */
async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, "r");
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

function targetExists(path: string, cause?: unknown): AppError {
  const message = `${path} exists already; remove it, choose another path, or use --force`;
  return new AppError("usage", "E_TARGET_EXISTS", message, { path }, cause);
}
