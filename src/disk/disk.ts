/** A range of bytes on a disk. Offsets and lengths are exact integers (JavaScript numbers reach 8 PiB). */
export interface Range {
  readonly offset: number;
  readonly length: number;
}

/**
 * What a source says about a range. The three are never mixed up:
 * `data` must be read; `zero` reads as zeros, which must be recorded; `unchanged` since the parent generation.
 */
export type ExtentState = "data" | "zero" | "unchanged";

export interface Extent extends Range {
  readonly state: ExtentState;
}

/** NBD's "block size constraints" (proto.md), in bytes. Without a server's word: 1, 4096, 32 MiB. */
export interface BlockSize {
  /** Offsets and lengths of requests must be multiples of it (but for the disk's end). */
  readonly minimum: number;
  readonly preferred: number;
  /** Most bytes in one read or write. */
  readonly maximum: number;
}

/**
 * A disk to be read, frozen at one point in time.
 *
 * Any number of calls may be under way at once. Every call ends soon after its signal is aborted, with the
 * signal's reason.
 */
export interface DiskSource {
  /** Names the disk in messages. */
  readonly name: string;
  /** Bytes, >= 0; need not be a multiple of anything. */
  readonly size: number;
  readonly blockSize: BlockSize;

  /**
   * Fills `into` from `offset`. Any offset and length inside the disk: the implementation splits and aligns.
   * While the call is under way the buffer belongs to the source; after a failure its content is undefined.
   *
   * @throws AppError (source) that names the disk, the range and the server's error.
   */
  read(offset: number, into: Uint8Array, signal: AbortSignal): Promise<void>;

  /**
   * The states of `range`, sorted, without gaps or overlap, covering exactly the range. `unchanged` comes only
   * from a source that was opened with a dirty bitmap; a source that knows nothing says `data`.
   */
  extents(range: Range, signal: AbortSignal): AsyncIterable<Extent>;

  close(): Promise<void>;
}

/**
 * A disk to be written. Calls may overlap in time, never in place.
 */
export interface DiskTarget {
  readonly name: string;
  readonly size: number;
  readonly blockSize: BlockSize;
  /** True when every byte not written yet is known to read as zero, so that zeros need no write. */
  readonly zeroed: boolean;

  /** Writes all of `bytes`; the buffer must not change until the call settles. */
  write(offset: number, bytes: Uint8Array, signal: AbortSignal): Promise<void>;

  /** Makes the range read as zeros, whatever it held; deallocates where the target can. */
  zero(offset: number, length: number, signal: AbortSignal): Promise<void>;

  /** After it resolves, everything written before is on stable storage. */
  flush(signal: AbortSignal): Promise<void>;

  close(): Promise<void>;
}
