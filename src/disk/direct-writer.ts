import { constants } from "node:fs";
import { open, type FileHandle } from "node:fs/promises";
import { systemCode } from "../errors.ts";

/** Offsets, lengths and memory in multiples of this suit every disk: those with sectors of 4096 bytes too. */
const ALIGNMENT = 4096;

/** Most bytes in one call; between two of them an abort is noticed. */
const CALL_MAX = 4 * 1024 * 1024;

/** What file systems and devices say to memory or ranges that do not suit them, or to O_DIRECT as such. */
const REFUSALS: readonly string[] = ["EINVAL", "ENOTSUP", "EOPNOTSUPP"];

/**
 * Writes past the page cache (open(2), O_DIRECT): a backup's bytes are not read again soon, and copying them into
 * the cache costs many times the CPU of the disk fetching them by itself.
 *
 * A second handle beside the file's own, used for what suits it; the file's own handle writes the rest, and syncs for
 * both. Whoever refuses is asked once.
 */
export class DirectWriter {
  readonly #path: string;
  /** By the first write. */
  #opening: Promise<FileHandle> | undefined;
  #refused = false;

  /** @param path of a file or block device that is there by the first write. */
  constructor(path: string) {
    this.#path = path;
  }

  /**
   * Writes as much of the front of `bytes` as can go this way; fast for memory of `pageAligned`.
   *
   * @returns bytes written: 0 when the file system, the place or the memory does not suit.
   * @throws the file system's own errors; the signal's reason.
   */
  async write(bytes: Uint8Array, position: number, signal: AbortSignal): Promise<number> {
    if (position % ALIGNMENT !== 0) return 0;
    const whole = bytes.length - (bytes.length % ALIGNMENT);
    let done = 0;
    while (done < whole && !this.#refused) {
      signal.throwIfAborted();
      const piece = bytes.subarray(done, Math.min(done + CALL_MAX, whole));
      const written = await this.#call(piece, position + done);
      done += written;
      if (written % ALIGNMENT !== 0) return done; // no room for more: the other handle hears why
    }
    return done;
  }

  /** After the last write has settled. Safe to call twice. */
  async close(): Promise<void> {
    const handle = await this.#opening?.catch(() => undefined);
    await handle?.close();
  }

  async #call(bytes: Uint8Array, position: number): Promise<number> {
    try {
      this.#opening ??= open(this.#path, constants.O_WRONLY | constants.O_DIRECT);
      const handle = await this.#opening;
      return (await handle.write(bytes, 0, bytes.length, position)).bytesWritten;
    } catch (error) {
      if (!isRefusal(error)) throw error;
      this.#refused = true; // tmpfs for one, or memory that does not begin on a page
      return 0;
    }
  }
}

function isRefusal(error: unknown): boolean {
  return REFUSALS.includes(systemCode(error) ?? "");
}
