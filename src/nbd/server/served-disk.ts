import type { BlockSize, Extent, Range } from "../../disk/disk.ts";
import type { DirtyExtent } from "../../disk/extents.ts";

/**
 * A disk that the server offers under a name. Calls come from any number of connections and many at once; each
 * ends soon after its signal is aborted, with the signal's reason. Ranges are inside the disk and, but for its
 * end, multiples of the minimum block size; lengths of reads and writes are at most the maximum.
 *
 * What is thrown reaches the client as an error number and its message as text (`errno.ts`).
 */
export interface ServedDisk {
  /** Bytes. */
  readonly size: number;
  /** For people: `nbdinfo` shows it. */
  readonly description?: string;
  readonly readOnly: boolean;
  readonly blockSize: BlockSize;

  /** Fills `into`; the buffer belongs to the disk until the call settles. */
  read(offset: number, into: Uint8Array, signal: AbortSignal): Promise<void>;

  /** As `read`, where the disk has the bytes in memory anyway; undefined: they are to be asked for otherwise. */
  lend?(offset: number, length: number, signal: AbortSignal): Promise<LentBytes | undefined>;

  /**
   * What is data and what reads as zeros: `base:allocation`, and holes instead of data in replies. Sorted,
   * without gaps, covering the range. Whoever asks may stop early. Left out, everything is data.
   */
  extents?(range: Range, signal: AbortSignal): AsyncIterable<Extent>;

  /** What changed: `qemu:dirty-bitmap:NAME`. Sorted, without gaps, covering the range. */
  readonly dirty?: {
    readonly name: string;
    extents(range: Range, signal: AbortSignal): AsyncIterable<DirtyExtent>;
  };

  /** A disk without it is read-only. Visible to every later read, on any connection, once it resolves. */
  write?(offset: number, bytes: Uint8Array, signal: AbortSignal): Promise<void>;

  /** Makes the range read as zeros, of any length. @param mayTrim false: keep the space allocated. */
  zero?(offset: number, length: number, mayTrim: boolean, signal: AbortSignal): Promise<void>;

  /** After it resolves, every write that resolved before is on stable storage. */
  flush?(signal: AbortSignal): Promise<void>;
}

/** Bytes of a disk that lie in memory. */
export interface LentBytes {
  /** One after the other. */
  readonly pieces: readonly LentPiece[];
  /** To be called once: until then the bytes stay as they are. */
  release(): void;
}

export interface LentPiece {
  /** Not to be changed. */
  readonly bytes: Uint8Array;
  /** They are nothing but zeros, and known to be. */
  readonly zero: boolean;
}

/** Can it be written, by what it says and by what it can do? */
export function isWritable(disk: ServedDisk): boolean {
  return !disk.readOnly && disk.write !== undefined;
}
