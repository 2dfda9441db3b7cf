import type { BlockSize, Extent, Range } from "../../src/disk/disk.ts";
import { clip, endOf, type DirtyExtent } from "../../src/disk/extents.ts";
import type { ServedDisk } from "../../src/nbd/server/served-disk.ts";

export interface MemoryDiskOptions {
  /** Said to read as zeros; anything else is said to be data. Sorted. Left out, the disk has no map. */
  readonly zeros?: readonly Range[];
  /** Said to be dirty, under the name "bitmap0". Sorted. */
  readonly dirty?: readonly Range[];
  readonly blockSize?: BlockSize;
  readonly readOnly?: boolean;
  readonly description?: string;
}

/** A served disk in memory that keeps a log of its calls and fails or waits when told to. */
export class MemoryDisk implements ServedDisk {
  readonly bytes: Buffer;
  readonly blockSize: BlockSize;
  readonly readOnly: boolean;
  readonly description?: string;
  readonly dirty?: NonNullable<ServedDisk["dirty"]>;
  readonly extents?: NonNullable<ServedDisk["extents"]>;
  /** "read 0+512", "write 0+4", "zero 0+4 trim", "zero 0+4", "flush". */
  readonly calls: string[] = [];
  /** Thrown by every call while set. */
  failure: Error | undefined;
  /** Reads wait for it. */
  gate: Promise<void> = Promise.resolve();
  /** Reads under way. */
  reading = 0;
  /** Reads that ended by an abort. */
  aborted = 0;

  constructor(bytes: Buffer, options: MemoryDiskOptions = {}) {
    this.bytes = bytes;
    this.blockSize = options.blockSize ?? { minimum: 1, preferred: 4096, maximum: 32 * 1024 * 1024 };
    this.readOnly = options.readOnly ?? false;
    const { description, zeros, dirty } = options;
    if (description !== undefined) this.description = description;
    if (zeros !== undefined) {
      this.extents = async function* (range): AsyncGenerator<Extent> {
        await Promise.resolve();
        yield* clip(alternating(zeros, bytes.length), range).map(({ marked, ...extent }): Extent => {
          return { ...extent, state: marked ? "zero" : "data" };
        });
      };
    }
    if (dirty !== undefined) {
      const extents = async function* (range: Range): AsyncGenerator<DirtyExtent> {
        await Promise.resolve();
        yield* clip(alternating(dirty, bytes.length), range).map(({ marked, ...extent }): DirtyExtent => {
          return { ...extent, dirty: marked };
        });
      };
      this.dirty = { name: "bitmap0", extents };
    }
  }

  get size(): number {
    return this.bytes.length;
  }

  async read(offset: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
    this.#called(`read ${offset}+${into.length}`);
    this.reading++;
    try {
      await Promise.race([this.gate, abortOf(signal)]);
    } catch (error) {
      this.aborted++;
      throw error;
    } finally {
      this.reading--;
    }
    into.set(this.bytes.subarray(offset, offset + into.length));
  }

  write(offset: number, bytes: Uint8Array): Promise<void> {
    return this.#done(`write ${offset}+${bytes.length}`, () => this.bytes.set(bytes, offset));
  }

  zero(offset: number, length: number, mayTrim: boolean): Promise<void> {
    const call = `zero ${offset}+${length}${mayTrim ? " trim" : ""}`;
    return this.#done(call, () => this.bytes.fill(0, offset, offset + length));
  }

  flush(): Promise<void> {
    return this.#done("flush", () => undefined);
  }

  #done(call: string, work: () => unknown): Promise<void> {
    return Promise.resolve().then(() => {
      this.#called(call);
      work();
    });
  }

  #called(call: string): void {
    this.calls.push(call);
    if (this.failure !== undefined) throw this.failure;
  }
}

function abortOf(signal: AbortSignal): Promise<never> {
  return new Promise((_resolve, reject) => {
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

/** The whole disk as ranges that are in the list and ranges that are not. */
function* alternating(ranges: readonly Range[], size: number): Generator<Range & { marked: boolean }> {
  let at = 0;
  for (const range of ranges) {
    if (range.offset > at) yield { offset: at, length: range.offset - at, marked: false };
    yield { ...range, marked: true };
    at = endOf(range);
  }
  if (at < size) yield { offset: at, length: size - at, marked: false };
}

/** A piece whose length is no multiple of any block's. */
const PATTERN = Buffer.from(
  Uint8Array.from({ length: 251 * 255 }, (_, index) => (index * 31 + (index >>> 8) * 7 + 1) % 251),
);

/** Bytes that differ from place to place, the same for the same length. */
export function patterned(length: number): Buffer {
  return Buffer.alloc(length, PATTERN);
}
