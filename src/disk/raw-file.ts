import { constants } from "node:fs";
import { open, stat, type FileHandle } from "node:fs/promises";
import { DirectWriter } from "./direct-writer.ts";
import { Budget } from "../flow/budget.ts";
import { AppError, messageOf, systemCode } from "../errors.ts";
import type { BlockSize, DiskSource, Extent, Range } from "./disk.ts";

/** Files take any offset and length; larger calls than `maximum` would only delay an abort. */
export const RAW_BLOCK_SIZE: BlockSize = { minimum: 1, preferred: 4096, maximum: 32 * 1024 * 1024 };

/** Most bytes in one system call. Not more: ext4 with large folios takes far more CPU for the same bytes then. */
const CALL_MAX = 256 * 1024;

/** Zeros are compared and written in pieces of this many bytes. */
const ZEROS = new Uint8Array(1024 * 1024);

/** What stands at a path: nothing, a regular file, a block device, or something that cannot hold a disk. */
export type PathKind = "absent" | "file" | "device" | "other";

/** Symbolic links are followed. @throws AppError as for opening, but for a missing file. */
export async function kindOfPath(path: string): Promise<PathKind> {
  try {
    const found = await stat(path);
    if (found.isFile()) return "file";
    return found.isBlockDevice() ? "device" : "other";
  } catch (error) {
    if (systemCode(error) === "ENOENT") return "absent";
    throw openFailed(path, error);
  }
}

/** An open raw image or block device: exact reads and writes, and errors that name the place. */
export class RawFile {
  readonly path: string;
  readonly kind: "file" | "device";
  /** Bytes, when it was opened. */
  readonly size: number;
  readonly handle: FileHandle;

  readonly #writing = new Budget(1);
  readonly #direct: DirectWriter | undefined;

  /** @param direct of the same place: writes go past the page cache where they can. */
  constructor(
    path: string,
    kind: "file" | "device",
    size: number,
    handle: FileHandle,
    direct: DirectWriter | undefined,
  ) {
    this.path = path;
    this.kind = kind;
    this.size = size;
    this.handle = handle;
    this.#direct = direct;
  }

  /**
   * Fills `into` from `offset`.
   *
   * @throws AppError E_DISK_READ (source) also when the file ends before `into` is full; the signal's reason.
   */
  async read(offset: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
    for (let done = 0; done < into.length;) {
      signal.throwIfAborted();
      const length = Math.min(CALL_MAX, into.length - done);
      const { bytesRead } = await this.handle
        .read(into, done, length, offset + done)
        .catch((error: unknown) => {
          throw this.#failed("E_DISK_READ", "read", { offset: offset + done, length }, error);
        });
      if (bytesRead === 0) {
        const place = { offset: offset + done, length };
        throw this.#failed("E_DISK_READ", "read", place, new Error("the file ends there"));
      }
      done += bytesRead;
    }
  }

  /**
   * Writes all of `bytes`. The kernel lets one writer into a file at a time and has the others spin, so they wait
   * for their turn here.
   *
   * @throws AppError E_TARGET_FULL (full), E_DISK_WRITE (source); the signal's reason.
   */
  async write(offset: number, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    for (let done = 0; done < bytes.length;) {
      signal.throwIfAborted();
      const length = Math.min(CALL_MAX, bytes.length - done);
      const leave = await this.#writing.take(1, signal);
      try {
        done += (await this.#direct?.write(bytes.subarray(done), offset + done, signal)) ?? 0;
        if (done === bytes.length) break;
        const rest = Math.min(length, bytes.length - done);
        done += (await this.handle.write(bytes, done, rest, offset + done)).bytesWritten;
      } catch (error) {
        signal.throwIfAborted();
        throw this.#failed("E_DISK_WRITE", "write", { offset: offset + done, length }, error);
      } finally {
        leave();
      }
    }
  }

  /** After the calls that are under way; safe to call twice. */
  async close(): Promise<void> {
    await this.#direct?.close();
    await this.handle.close();
  }

  /**
   * Makes the range read as zeros.
   *
   * @param fill write zeros also where there are some already; otherwise such places are left as they are, so
   *   that holes and thin devices stay thin.
   * @throws as `read` and `write`.
   */
  async zero(range: Range, fill: boolean, signal: AbortSignal): Promise<void> {
    const found = Buffer.allocUnsafe(Math.min(ZEROS.length, range.length));
    for (let done = 0; done < range.length;) {
      const length = Math.min(found.length, range.length - done);
      const zeros = ZEROS.subarray(0, length);
      const piece = found.subarray(0, length);
      if (!fill) await this.read(range.offset + done, piece, signal);
      if (fill || !piece.equals(zeros)) await this.write(range.offset + done, zeros, signal);
      done += length;
    }
  }

  /** After it resolves, all that was written is on stable storage. @throws as `write`. */
  async flush(): Promise<void> {
    await this.handle.datasync().catch((error: unknown) => {
      throw this.#failed("E_DISK_WRITE", "flush", { offset: 0, length: this.size }, error);
    });
  }

  /** Makes the file this long; new bytes are a hole. Files only. @throws as `write`. */
  async resize(size: number): Promise<void> {
    await this.handle.truncate(size).catch((error: unknown) => {
      throw this.#failed("E_DISK_WRITE", "resize", { offset: 0, length: size }, error);
    });
  }

  #failed(code: "E_DISK_READ" | "E_DISK_WRITE", verb: string, place: Range, cause: unknown): AppError {
    const { offset, length } = place;
    const errno = systemCode(cause);
    // EFBIG is the file system's or the process's limit on the length of one file.
    if (errno === "ENOSPC" || errno === "EDQUOT" || errno === "EFBIG") {
      const message = `No room to ${verb} ${length} bytes at ${offset} of ${this.path} (${errno})`;
      return new AppError(
        "full",
        "E_TARGET_FULL",
        `${message}; free some space or raise the quota`,
        {},
        cause,
      );
    }
    const message = `Cannot ${verb} ${length} bytes at ${offset} of ${this.path}: ${messageOf(cause)}`;
    return new AppError("source", code, message, { path: this.path, offset, length, errno }, cause);
  }
}

/**
 * Opens an existing image file or block device.
 *
 * @param access "direct": to write, past the page cache where that can be. "write" and "direct" also claim a block
 *   device: one that is mounted, or claimed by another, is refused.
 * @throws AppError E_DISK_MISSING (notFound), E_DISK_PERMISSION (credentials), E_DISK_BUSY (locked),
 *   E_DISK_KIND (usage: a folder, a socket), E_DISK_OPEN (source).
 */
export async function openRawFile(path: string, access: "read" | "write" | "direct"): Promise<RawFile> {
  const kind = await kindOfPath(path);
  if (kind === "other") {
    throw new AppError("usage", "E_DISK_KIND", `${path} is neither a file nor a block device`);
  }
  // Without O_CREAT, Linux takes O_EXCL on a block device as "nobody else, no mount" (open(2)).
  const claim = kind === "device" ? constants.O_EXCL : 0;
  const flags = access === "read" ? constants.O_RDONLY : constants.O_RDWR | claim;
  const handle = await open(path, flags).catch((error: unknown) => {
    throw openFailed(path, error);
  });
  try {
    const size = kind === "device" ? await deviceSize(handle) : (await handle.stat()).size;
    const direct = access === "direct" ? new DirectWriter(path) : undefined;
    return new RawFile(path, kind === "device" ? "device" : "file", size, handle, direct);
  } catch (error) {
    await handle.close();
    throw openFailed(path, error);
  }
}

/**
 * The size of a block device: the first offset where nothing can be read. Node has neither ioctl nor a seek,
 * and a device's `stat` says 0; this needs some hundred reads of one byte and no /sys.
 */
async function deviceSize(handle: FileHandle): Promise<number> {
  const byte = new Uint8Array(1);
  const readable = async (offset: number): Promise<boolean> =>
    (await handle.read(byte, 0, 1, offset)).bytesRead === 1;
  if (!(await readable(0))) return 0;
  let last = 0; // readable
  let beyond = 512; // not readable, once the first loop is over
  while (await readable(beyond)) {
    last = beyond;
    beyond *= 2;
  }
  while (beyond - last > 1) {
    const middle = last + Math.floor((beyond - last) / 2);
    if (await readable(middle)) last = middle;
    else beyond = middle;
  }
  return beyond;
}

/** What the system says when a path cannot be opened or created, as our own error. */
export function openFailed(path: string, error: unknown): AppError {
  const errno = systemCode(error);
  if (errno === "ENOENT") {
    return new AppError("notFound", "E_DISK_MISSING", `There is no ${path}`, { path }, error);
  }
  if (errno === "EACCES" || errno === "EPERM" || errno === "EROFS") {
    const message = `No permission to open ${path} (${errno})`;
    return new AppError("credentials", "E_DISK_PERMISSION", message, { path }, error);
  }
  if (errno === "EBUSY") {
    const message = `${path} is in use, perhaps mounted; unmount it or stop what uses it`;
    return new AppError("locked", "E_DISK_BUSY", message, { path }, error);
  }
  if (errno === "ENOSPC" || errno === "EDQUOT") {
    return new AppError("full", "E_TARGET_FULL", `No room for ${path} (${errno})`, { path }, error);
  }
  const message = `Cannot open ${path}: ${messageOf(error)}`;
  return new AppError("source", "E_DISK_OPEN", message, { path, errno }, error);
}

/**
 * A raw image file or a block device as the disk it holds.
 *
 * Node offers no way to ask for holes (SEEK_HOLE), so every extent is data; zeros are found when it is read.
 */
export class RawFileSource implements DiskSource {
  readonly blockSize = RAW_BLOCK_SIZE;
  readonly #file: RawFile;

  constructor(file: RawFile) {
    this.#file = file;
  }

  get name(): string {
    return this.#file.path;
  }

  get size(): number {
    return this.#file.size;
  }

  async read(offset: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#file.read(offset, into, signal);
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- the contract is asynchronous, the answer is at hand
  async *extents(range: Range, signal: AbortSignal): AsyncGenerator<Extent, void, undefined> {
    signal.throwIfAborted();
    if (range.length > 0) yield { ...range, state: "data" };
  }

  /** Ends after the calls that are under way; safe to call twice. */
  async close(): Promise<void> {
    await this.#file.close();
  }
}

/** @throws as `openRawFile`; the signal's reason. */
export async function openRawSource(path: string, signal: AbortSignal): Promise<RawFileSource> {
  signal.throwIfAborted();
  return new RawFileSource(await openRawFile(path, "read"));
}
