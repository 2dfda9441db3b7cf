import type { FileHandle } from "node:fs/promises";
import type { DirectWriter } from "../disk/direct-writer.ts";
import type { AppError } from "../errors.ts";
import { writeAll } from "./durable.ts";
import { uploadMisused } from "./object-errors.ts";

/** Where a finished upload goes, and what is done with one that is given up. */
export interface UploadEnd {
  /** Publishes the synced file under the upload's key. */
  publish(signal: AbortSignal): Promise<void>;
  /** Removes the temporary file; no error when it is gone. */
  discard(): Promise<void>;
  /** Translates a failed call of the file system. */
  fail(error: unknown): AppError;
}

/**
 * A `PartUpload` into a temporary file: each part at its own offset, several at once.
 *
 * Parts go past the page cache where they can. What does not starts on its way to the disk while more parts come, so
 * that the sync at the end has little left to do. A failed sync in between is remembered: the kernel reports such an
 * error only once.
 */
export class FileUpload {
  readonly key: string;
  readonly #file: FileHandle;
  readonly #direct: DirectWriter;
  readonly #end: UploadEnd;
  #partSize = 0;
  #parts = 0;
  #written = 0;
  #underway = 0;
  #lastIsShort = false;
  #state: "open" | "failed" | "ended" = "open";
  #flushing: Promise<void> | undefined;
  #flushAgain = false;
  #flushError: AppError | undefined;

  /** @param file open for writing. @param direct of the same file. Both are closed at the end. */
  constructor(key: string, file: FileHandle, direct: DirectWriter, end: UploadEnd) {
    this.key = key;
    this.#file = file;
    this.#direct = direct;
    this.#end = end;
  }

  async part(number: number, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const position = this.#place(number, bytes.length);
    this.#underway++;
    try {
      const done = await this.#direct.write(bytes, position, signal);
      if (done < bytes.length) {
        await writeAll(this.#file, bytes.subarray(done), position + done, signal);
        this.#flushSoon();
      }
      this.#written += bytes.length;
    } catch (error) {
      this.#state = "failed";
      signal.throwIfAborted();
      throw this.#end.fail(error);
    } finally {
      this.#underway--;
    }
  }

  async complete(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (this.#state !== "open" || this.#underway > 0 || this.#parts === 0) {
      throw this.#misuse(`completed with ${this.#parts} parts, ${this.#underway} of them under way`);
    }
    this.#state = "ended";
    try {
      await this.#flushing;
      if (this.#flushError !== undefined) throw this.#flushError;
      await this.#direct.close();
      await this.#file.sync();
      const { size } = await this.#file.stat();
      if (size !== this.#written) throw this.#misuse(`wrote ${this.#written} bytes, the file has ${size}`);
      await this.#file.close();
      await this.#end.publish(signal);
    } catch (error) {
      await this.#drop();
      signal.throwIfAborted();
      throw this.#end.fail(error);
    }
  }

  async abort(): Promise<void> {
    if (this.#state === "ended") return;
    this.#state = "ended";
    await this.#drop();
  }

  /** The part's offset; parts are numbered as they come, and all but the last are of one length. */
  #place(number: number, length: number): number {
    if (this.#state !== "open") throw this.#misuse(`part ${number} after its end`);
    if (number === 0 && this.#parts === 0) this.#partSize = length;
    const fits = length > 0 && length <= this.#partSize && !this.#lastIsShort;
    if (number !== this.#parts || !fits) {
      throw this.#misuse(`part ${number} of ${length} bytes after ${this.#parts} parts of ${this.#partSize}`);
    }
    this.#lastIsShort = length < this.#partSize;
    this.#parts++;
    return number * this.#partSize;
  }

  /** At most one sync at a time, and one more after it for what was written meanwhile. */
  #flushSoon(): void {
    if (this.#flushing !== undefined) {
      this.#flushAgain = true;
      return;
    }
    this.#flushAgain = false;
    this.#flushing = this.#file
      .datasync()
      .catch((error: unknown) => void (this.#flushError ??= this.#end.fail(error)))
      .then(() => {
        this.#flushing = undefined;
        if (this.#flushAgain && this.#state === "open") this.#flushSoon();
      });
  }

  async #drop(): Promise<void> {
    await this.#flushing;
    for (const opened of [this.#direct, this.#file]) {
      await opened.close().catch(() => {}); // closed already, or broken: either way the file goes
    }
    await this.#end.discard();
  }

  #misuse(what: string): AppError {
    return uploadMisused(this.key, what);
  }
}
