import type { BlockSize, Extent, Range } from "../disk/disk.ts";
import type { ServedDisk } from "../nbd/server/served-disk.ts";
import { identifyFileSystem, type FileSystemKind } from "./file-system.ts";
import { findPartitions, type Partition, type ReadBytes } from "./partitions.ts";

/** A disk that says where it holds nothing. */
export type SparseDisk = ServedDisk & Required<Pick<ServedDisk, "extents">>;

/** A partition of a disk as a disk of its own, as writable as that. */
export class PartDisk implements ServedDisk {
  readonly readOnly: boolean;
  readonly size: number;
  readonly blockSize: BlockSize;
  readonly description: string;
  readonly #disk: SparseDisk;
  readonly #offset: number;

  /** @param disk it stays the caller's. */
  constructor(disk: SparseDisk, { number, offset, length }: Partition) {
    this.#disk = disk;
    this.#offset = offset;
    this.readOnly = disk.readOnly;
    this.size = length;
    this.blockSize = disk.blockSize;
    this.description = `partition ${number} of ${disk.description ?? "a disk"}`;
  }

  async read(offset: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#disk.read(this.#offset + offset, into, signal);
  }

  async *extents({ offset, length }: Range, signal: AbortSignal): AsyncGenerator<Extent, void, undefined> {
    for await (const extent of this.#disk.extents({ offset: this.#offset + offset, length }, signal)) {
      yield { ...extent, offset: extent.offset - this.#offset };
    }
  }

  async write(offset: number, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#disk.write!(this.#offset + offset, bytes, signal);
  }

  async zero(offset: number, length: number, mayTrim: boolean, signal: AbortSignal): Promise<void> {
    await this.#disk.zero!(this.#offset + offset, length, mayTrim, signal);
  }

  async flush(signal: AbortSignal): Promise<void> {
    await this.#disk.flush!(signal);
  }
}

/** A place where a file system may be: a partition, or a disk that has none. */
export interface Volume {
  /** The disk's name; of a partition "vda:1": no disk is called that. */
  readonly name: string;
  readonly disk: SparseDisk;
  /** Undefined: nothing that is known. */
  readonly kind: FileSystemKind | undefined;
}

/** What is on a disk, in order. @throws what reading it throws. */
export async function volumesOf(name: string, disk: SparseDisk, signal: AbortSignal): Promise<Volume[]> {
  const whole = readerOf(disk, signal);
  const kind = await identifyFileSystem(disk.size, whole);
  const partitions = kind === undefined ? await findPartitions(disk.size, whole) : [];
  if (partitions.length === 0) return [{ name, disk, kind }];
  const volumes: Volume[] = [];
  for (const partition of partitions) {
    const part = new PartDisk(disk, partition);
    const found = await identifyFileSystem(part.size, readerOf(part, signal));
    volumes.push({ name: `${name}:${partition.number}`, disk: part, kind: found });
  }
  return volumes;
}

function readerOf(disk: SparseDisk, signal: AbortSignal): ReadBytes {
  return async (offset, length) => {
    const bytes = Buffer.alloc(length);
    await disk.read(offset, bytes, signal);
    return bytes;
  };
}
