import { randomUUID } from "node:crypto";
import { mkdir, open, rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { AppError, messageOf, systemCode } from "../errors.ts";
import { AgeHistogram, cachedFiles, PAGE } from "./disk-cache-files.ts";

/** A blob as it is stored in a pack, by what the pack's directory says of it. */
export interface CachedBlob {
  /** Of its chunk, 32 bytes. */
  readonly id: Uint8Array;
  /** Of its stored bytes. */
  readonly crc32: number;
}

/** A file that was used so lately need not be marked as used again, in milliseconds. */
const TOUCH_AFTER_MS = 60_000;
/** When there is too much, so much stays. */
const KEPT_SHARE = 0.9;
/** Other processes add too: the folder is looked at again when this one has added such a part of what may be there. */
const LOOK_AGAIN_SHARE = 1 / 8;

/**
 * Blobs of packs on a local disk, as they are stored in the repository, the least recently used given up first. They are
 * checked by whoever opens them, as those from the repository are; so anybody may change, damage or delete the files, and
 * several processes may share the folder.
 *
 * It is there to save requests and nothing else: what cannot be read or written is left out. A file holds one blob; its
 * name says which, its modification time when it was used last. Memory does not grow with the files.
 */
export class DiskCache {
  readonly #folder: string;
  readonly #bytesMax: number;
  readonly #warn: (message: string) => void;
  /** As counted at the last look, and added since. */
  #bytes = 0;
  #sinceLook = 0;
  #tidying: Promise<void> | undefined;
  #readOnly = false;
  #closed = false;

  private constructor(folder: string, bytesMax: number, warn: (message: string) => void) {
    this.#folder = folder;
    this.#bytesMax = bytesMax;
    this.#warn = warn;
  }

  /**
   * @param folder made when it is not there. @param bytesMax most bytes of all its files.
   * @param warn told once when it cannot be written.
   * @throws AppError E_CACHE_DISK (usage) when there can be no such folder.
   */
  static async open(folder: string, bytesMax: number, warn: (message: string) => void): Promise<DiskCache> {
    try {
      await mkdir(folder, { recursive: true, mode: 0o700 });
    } catch (error) {
      const message = `The folder ${folder} cannot be used as a cache: ${messageOf(error)}`;
      throw new AppError("usage", "E_CACHE_DISK", message, { folder }, error);
    }
    const cache = new DiskCache(folder, bytesMax, warn);
    cache.#tidy();
    return cache;
  }

  /** Fills `into` with a blob's bytes; false when there is none of that length. */
  async read(blob: CachedBlob, into: Uint8Array): Promise<boolean> {
    try {
      const file = await open(this.#path(blob), "r");
      try {
        const { size, mtimeMs } = await file.stat();
        if (size !== into.length) return false;
        const { bytesRead } = await file.read(into, 0, into.length, 0);
        const now = Date.now();
        if (now - mtimeMs > TOUCH_AFTER_MS) await file.utimes(now / 1000, now / 1000).catch(() => undefined);
        return bytesRead === into.length;
      } finally {
        await file.close();
      }
    } catch {
      return false; // it is in the repository
    }
  }

  /** Keeps a blob, if there is room. The bytes belong to the call until it settles. Never rejects. */
  async keep(blob: CachedBlob, bytes: Uint8Array): Promise<void> {
    const room = Math.ceil(bytes.length / PAGE) * PAGE;
    if (this.#readOnly || this.#closed) return;
    // what came with one request may have been there in part
    const found = await stat(this.#path(blob)).catch(() => undefined);
    if (found?.size === bytes.length) return;
    if (this.#bytes + room > this.#bytesMax || this.#sinceLook > this.#bytesMax * LOOK_AGAIN_SHARE)
      this.#tidy();
    if (this.#bytes + room > this.#bytesMax) return;
    this.#bytes += room;
    this.#sinceLook += room;
    try {
      await this.#write(blob, bytes);
    } catch (error) {
      this.#bytes -= room;
      this.#stopWriting(`Nothing more goes to the cache in ${this.#folder}: ${messageOf(error)}`);
    }
  }

  /** Removes a blob that is not what its name says. */
  async drop(blob: CachedBlob): Promise<void> {
    await rm(this.#path(blob), { force: true }).catch(() => undefined);
  }

  /** Waits for what is under way. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#tidying;
  }

  /** Several writes may fail together: it is told once. */
  #stopWriting(message: string): void {
    if (!this.#readOnly) this.#warn(message);
    this.#readOnly = true;
  }

  async #write(blob: CachedBlob, bytes: Uint8Array): Promise<void> {
    const path = this.#path(blob);
    const folder = join(path, "..");
    const temporary = join(folder, `.${randomUUID()}`);
    const file = await open(temporary, "wx", 0o600).catch(async (error: unknown) => {
      if (systemCode(error) !== "ENOENT") throw error;
      await mkdir(folder, { recursive: true, mode: 0o700 });
      return await open(temporary, "wx", 0o600);
    });
    try {
      await file.writeFile(bytes).finally(() => file.close());
      await rename(temporary, path); // whole or not at all, whoever reads it
    } catch (error) {
      await rm(temporary, { force: true }).catch(() => undefined);
      throw error;
    }
  }

  /** Looks how much there is, and removes what was not used for longest until there is room. One at a time. */
  #tidy(): void {
    if (this.#tidying !== undefined) return;
    this.#sinceLook = 0;
    this.#tidying = this.#makeRoom()
      .catch(() => undefined) // an unreadable folder gives nothing and takes nothing
      .finally(() => (this.#tidying = undefined));
  }

  async #makeRoom(): Promise<void> {
    const now = Date.now();
    const ages = new AgeHistogram();
    for await (const { bytes, usedMs } of cachedFiles(this.#folder, now)) {
      if (this.#closed) return;
      ages.add(now - usedMs, bytes);
    }
    this.#bytes = ages.bytes + this.#sinceLook;
    let excess = this.#bytes - this.#bytesMax * KEPT_SHARE;
    if (excess <= 0) return;
    const isOld = ages.oldest(excess);
    for await (const { path, bytes, usedMs } of cachedFiles(this.#folder, now)) {
      if (excess <= 0 || this.#closed) return;
      if (!isOld(now - usedMs)) continue;
      await rm(path, { force: true });
      excess -= bytes;
      this.#bytes -= bytes;
    }
  }

  #path({ id, crc32 }: CachedBlob): string {
    const name = Buffer.from(id).toString("hex");
    return join(this.#folder, name.slice(0, 2), `${name}-${crc32.toString(16).padStart(8, "0")}`);
  }
}
