import type { BlockSize, DiskSource, DiskTarget, Extent, Range } from "../../src/disk/disk.ts";
import { clip } from "../../src/disk/extents.ts";

const ANY_BLOCK: BlockSize = { minimum: 1, preferred: 4096, maximum: 32 * 1024 * 1024 };

export interface ScriptedDiskOptions {
  /** What the disk says of itself, front to back; left out, all of it is data. */
  readonly extents?: readonly Extent[];
  /** Called before a read is answered; may wait, and may throw. */
  readonly onRead?: (offset: number, length: number, signal: AbortSignal) => Promise<void> | void;
}

/** A disk source whose bytes, extents and troubles a test chooses; it remembers what was asked. */
export class ScriptedDisk implements DiskSource {
  readonly name: string;
  readonly bytes: Buffer;
  readonly blockSize = ANY_BLOCK;
  readonly reads: Range[] = [];
  closed = 0;
  /** Reads under way now, and the most there ever were. */
  reading = 0;
  readingMost = 0;
  readonly #extents: readonly Extent[];
  readonly #onRead: NonNullable<ScriptedDiskOptions["onRead"]>;

  constructor(name: string, bytes: Buffer, options: ScriptedDiskOptions = {}) {
    this.name = name;
    this.bytes = bytes;
    this.#extents = options.extents ?? [{ offset: 0, length: bytes.length, state: "data" }];
    this.#onRead = options.onRead ?? ((): void => undefined);
  }

  get size(): number {
    return this.bytes.length;
  }

  async read(offset: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
    this.reads.push({ offset, length: into.length });
    this.readingMost = Math.max(this.readingMost, ++this.reading);
    try {
      await this.#onRead(offset, into.length, signal);
      await new Promise((resolve) => setImmediate(resolve));
      signal.throwIfAborted();
      into.set(this.bytes.subarray(offset, offset + into.length));
    } finally {
      this.reading--;
    }
  }

  async *extents(range: Range, signal: AbortSignal): AsyncGenerator<Extent> {
    for (const extent of clip(this.#extents, range)) {
      await Promise.resolve();
      signal.throwIfAborted();
      yield extent;
    }
  }

  close(): Promise<void> {
    this.closed++;
    return Promise.resolve();
  }
}

/** Where restored bytes go. Full of garbage before, so that a byte nobody wrote shows. */
export class MemoryTarget implements DiskTarget {
  readonly name = "memory";
  readonly bytes: Buffer;
  readonly blockSize = ANY_BLOCK;
  readonly zeroed = false;
  flushed = 0;

  constructor(size: number) {
    this.bytes = Buffer.alloc(size, 0xa5);
  }

  get size(): number {
    return this.bytes.length;
  }

  async write(offset: number, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    await Promise.resolve();
    signal.throwIfAborted();
    this.#inside(offset, bytes.length);
    this.bytes.set(bytes, offset);
  }

  async zero(offset: number, length: number, signal: AbortSignal): Promise<void> {
    await Promise.resolve();
    signal.throwIfAborted();
    this.#inside(offset, length);
    this.bytes.fill(0, offset, offset + length);
  }

  flush(): Promise<void> {
    this.flushed++;
    return Promise.resolve();
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  #inside(offset: number, length: number): void {
    if (offset < 0 || length < 1 || offset + length > this.size)
      throw new Error(`${length} bytes at ${offset}`);
  }
}
