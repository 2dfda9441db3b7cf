import type { BlockSize, Extent, Range } from "../disk/disk.ts";
import type { ServedDisk } from "../nbd/server/served-disk.ts";
import type { WritableDisk } from "../serve/throwaway.ts";

/** What whoever uses a disk has done to it. */
export interface DiskUse {
  readonly bytesRead: number;
  readonly bytesWritten: number;
}

/** Passes everything on to a disk, counts it, and tells when the disk fails. */
export class WatchedDisk implements ServedDisk {
  readonly readOnly = false;
  readonly size: number;
  readonly blockSize: BlockSize;
  readonly description: string;
  readonly #disk: WritableDisk;
  readonly #failed: (error: unknown) => void;
  #bytesRead = 0;
  #bytesWritten = 0;

  /**
   * @param disk with an overlay; it stays the caller's.
   * @param failed told of each request that fails, unless it was given up by who asked.
   */
  constructor(disk: WritableDisk, failed: (error: unknown) => void) {
    this.#disk = disk;
    this.#failed = failed;
    this.size = disk.size;
    this.blockSize = disk.blockSize;
    this.description = disk.description ?? "a disk";
  }

  /** Until now. */
  get use(): DiskUse {
    return { bytesRead: this.#bytesRead, bytesWritten: this.#bytesWritten };
  }

  async read(offset: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#watched(signal, () => this.#disk.read(offset, into, signal));
    this.#bytesRead += into.length;
  }

  async *extents(range: Range, signal: AbortSignal): AsyncGenerator<Extent, void, undefined> {
    yield* this.#disk.extents(range, signal);
  }

  async write(offset: number, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#watched(signal, () => this.#disk.write(offset, bytes, signal));
    this.#bytesWritten += bytes.length;
  }

  async zero(offset: number, length: number, mayTrim: boolean, signal: AbortSignal): Promise<void> {
    await this.#watched(signal, () => this.#disk.zero(offset, length, mayTrim, signal));
  }

  async flush(signal: AbortSignal): Promise<void> {
    await this.#watched(signal, () => this.#disk.flush(signal));
  }

  async #watched(signal: AbortSignal, work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (!signal.aborted) this.#failed(error);
      throw error;
    }
  }
}
