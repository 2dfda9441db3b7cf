import { BlockMap } from "../../disk/block-map.ts";
import type { Range } from "../../disk/disk.ts";
import type { DirtyExtent } from "../../disk/extents.ts";
import { openRawFile, RAW_BLOCK_SIZE, type RawFile } from "../../disk/raw-file.ts";
import type { ServedDisk } from "./served-disk.ts";

/** QEMU's default granularity of dirty bitmaps, in bytes. */
const GRANULARITY = 64 * 1024;

/** A raw image file or block device to be served. */
export interface ServedRawFile extends ServedDisk {
  /** Starts the dirty bitmap anew: clean from here on. */
  forgetDirty(): void;
  /** After the server was closed. */
  close(): Promise<void>;
}

/**
 * Opens a raw image for serving.
 *
 * @param options writable; dirtyBitmap: what is written from now on is remembered in memory, 64 KiB at a time,
 *   and offered as `qemu:dirty-bitmap:NAME`.
 * @throws as `openRawFile`.
 */
export async function serveRawFile(
  path: string,
  options: { readonly writable: boolean; readonly dirtyBitmap?: string },
): Promise<ServedRawFile> {
  const file = await openRawFile(path, options.writable ? "write" : "read");
  return new RawDisk(file, options.writable, options.dirtyBitmap);
}

class RawDisk implements ServedRawFile {
  readonly readOnly: boolean;
  readonly blockSize = RAW_BLOCK_SIZE;
  readonly description: string;
  readonly dirty?: NonNullable<ServedDisk["dirty"]>;
  readonly #file: RawFile;
  readonly #written: BlockMap;

  constructor(file: RawFile, writable: boolean, dirtyBitmap: string | undefined) {
    this.#file = file;
    this.readOnly = !writable;
    this.description = `raw ${file.kind} ${file.path}`;
    this.#written = new BlockMap(file.size, GRANULARITY);
    if (dirtyBitmap === undefined) return;
    this.dirty = { name: dirtyBitmap, extents: (range, signal) => this.#dirtyExtents(range, signal) };
  }

  get size(): number {
    return this.#file.size;
  }

  async read(offset: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#file.read(offset, into, signal);
  }

  async write(offset: number, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    this.#written.mark({ offset, length: bytes.length }); // first: half a write is a change as well
    await this.#file.write(offset, bytes, signal);
  }

  /** The range counts as dirty even where it read as zeros before. Holes stay, where they may; none are made. */
  async zero(offset: number, length: number, mayTrim: boolean, signal: AbortSignal): Promise<void> {
    this.#written.mark({ offset, length });
    await this.#file.zero({ offset, length }, !mayTrim, signal);
  }

  async flush(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    await this.#file.flush();
  }

  forgetDirty(): void {
    this.#written.clear();
  }

  async close(): Promise<void> {
    await this.#file.close();
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- the contract is asynchronous, the answer is at hand
  async *#dirtyExtents(range: Range, signal: AbortSignal): AsyncGenerator<DirtyExtent, void, undefined> {
    signal.throwIfAborted();
    yield* this.#written.extents(range);
  }
}
