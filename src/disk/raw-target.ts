import { AppError } from "../errors.ts";
import { BlockMap } from "./block-map.ts";
import { DirectWriter } from "./direct-writer.ts";
import type { DiskTarget, Range } from "./disk.ts";
import { PartialFile } from "./partial-file.ts";
import { openRawFile, RAW_BLOCK_SIZE, RawFile, RawFileSource } from "./raw-file.ts";

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
 * A new sparse file, which gets its name by `commit`.
 *
 * @param size of the disk, bytes.
 * @param options force: replace an existing file, as `PartialFile.create` does.
 * @throws as `PartialFile.create`.
 */
export async function createRawFile(
  path: string,
  size: number,
  options: { readonly force: boolean },
  signal: AbortSignal,
): Promise<RawFileTarget> {
  signal.throwIfAborted();
  const partial = await PartialFile.create(path, options);
  const target = new FreshFile(partial, size);
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
  const file = await openRawFile(path, "direct");
  try {
    if (file.kind === "device" && file.size < size) throw sizeError(file, size, "at least as large");
    if (file.kind === "file" && file.size < size) await file.resize(size);
    return new ExistingTarget(file, size);
  } catch (error) {
    await file.close();
    throw error;
  }
}

/**
 * An existing file of exactly this size, or a block device of at least it, to be read and written. Closing the target
 * closes both.
 *
 * @throws AppError E_TARGET_SIZE (usage); as `openRawFile`.
 */
export async function openRawDisk(
  path: string,
  size: number,
  signal: AbortSignal,
): Promise<{ readonly source: RawFileSource; readonly target: RawFileTarget }> {
  signal.throwIfAborted();
  const file = await openRawFile(path, "direct");
  if (file.kind === "file" ? file.size === size : file.size >= size) {
    return { source: new RawFileSource(file), target: new ExistingTarget(file, size) };
  }
  await file.close();
  throw sizeError(file, size, file.kind === "file" ? "of the same size" : "at least as large");
}

function sizeError(file: RawFile, size: number, wanted: string): AppError {
  const message = `${file.path} has ${file.size} bytes and the disk ${size}; choose a target ${wanted}`;
  return new AppError("usage", "E_TARGET_SIZE", message, {
    path: file.path,
    targetSize: file.size,
    diskSize: size,
  });
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
    await this.#file.close();
  }
}

class FreshFile implements RawFileTarget {
  readonly zeroed = true;
  readonly blockSize = RAW_BLOCK_SIZE;
  readonly #partial: PartialFile;
  readonly #file: RawFile;
  readonly #written: BlockMap;

  constructor(partial: PartialFile, size: number) {
    this.#partial = partial;
    this.#file = new RawFile(partial.path, "file", size, partial.handle, new DirectWriter(partial.path));
    this.#written = new BlockMap(size, WRITTEN_BLOCK);
  }

  get name(): string {
    return this.#partial.place;
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
    await this.#file.flush();
    await this.#partial.publish();
  }

  async close(): Promise<void> {
    await this.#file.close();
    await this.#partial.close();
  }
}

/** @throws AppError E_TARGET_RANGE (bug). */
function checkInside(target: DiskTarget, range: Range): void {
  const { offset, length } = range;
  if (offset >= 0 && length >= 0 && offset + length <= target.size) return;
  const message = `Tried to write ${length} bytes at ${offset} of ${target.name}, which has ${target.size}`;
  throw new AppError("bug", "E_TARGET_RANGE", message);
}
