import { randomUUID } from "node:crypto";
import { mkdir, open, readdir, stat, unlink } from "node:fs/promises";
import { join } from "node:path";
import { systemCode } from "../errors.ts";
import { isAbsent } from "./directory-errors.ts";
import { uploadMisused } from "./object-errors.ts";
import type { PendingUpload } from "./store.ts";

/** Between the pieces of a temporary file's name; keys do not have it. */
const MARK = "+";
/** Begins the name of a claim; of an upload it is a UUID. */
const CLAIM = "claim";
/** A temporary file nobody has written to for so long was left by a run that died. */
const LEFTOVER_AGE_MS = 24 * 3600 * 1000;

/** Removes a file; no error when it is gone. */
export async function removeIfThere(path: string): Promise<void> {
  try {
    await unlink(path);
  } catch (error) {
    if (!isAbsent(error)) throw error;
  }
}

/**
 * The folder with the files of a directory store that have no name in it yet. Errors are the file system's own.
 *
 *     UUID              a `put`
 *     UUID+packs+ID     an upload in parts of packs/ID
 *     claim+packs+ID    see `publish`
 */
export class TemporaryFolder {
  readonly #path: string;
  #ready: Promise<void> | undefined;

  constructor(path: string) {
    this.#path = path;
  }

  /** Makes the folder if it must, and once clears away what runs that died have left. */
  async prepare(): Promise<void> {
    this.#ready ??= this.#prepare();
    try {
      await this.#ready;
    } catch (error) {
      this.#ready = undefined; // the next call tries again
      throw error;
    }
  }

  newFile(): string {
    return join(this.#path, randomUUID());
  }

  newUpload(key: string): string {
    return this.newFile() + suffixOf(key);
  }

  claimOf(key: string): string {
    return join(this.#path, CLAIM + suffixOf(key));
  }

  /** @returns the file of an upload that `uploads` has told of. @throws AppError E_UPLOAD (bug) for any other name. */
  fileOf(upload: PendingUpload): string {
    const { key, uploadId } = upload;
    if (keyOf(uploadId) !== key || uploadId.includes("/")) {
      throw uploadMisused(key, `no upload "${uploadId}"`);
    }
    return join(this.#path, uploadId);
  }

  /** Uploads in no order; `initiated` is when the latest part was written, which a file system knows surely. */
  async uploads(prefix: string): Promise<PendingUpload[]> {
    const uploads: PendingUpload[] = [];
    for (const name of await this.#names()) {
      const key = keyOf(name);
      if (key === undefined || !key.startsWith(prefix)) continue;
      const written = await this.#lastWritten(name);
      if (written !== undefined) uploads.push({ key, uploadId: name, initiated: written });
    }
    return uploads;
  }

  /** The clock of the file system, which may be another machine's. */
  async now(): Promise<Date> {
    const path = this.newFile();
    const file = await open(path, "wx");
    try {
      return (await file.stat()).mtime;
    } finally {
      await file.close();
      await removeIfThere(path);
    }
  }

  async #prepare(): Promise<void> {
    await mkdir(this.#path, { recursive: true });
    const names = await this.#names();
    if (names.length === 0) return;
    const now = await this.now();
    for (const name of names) {
      const written = await this.#lastWritten(name);
      if (written !== undefined && now.getTime() - written.getTime() > LEFTOVER_AGE_MS) {
        await removeIfThere(join(this.#path, name));
      }
    }
  }

  async #names(): Promise<string[]> {
    try {
      return await readdir(this.#path);
    } catch (error) {
      if (systemCode(error) === "ENOENT") return [];
      throw error;
    }
  }

  async #lastWritten(name: string): Promise<Date | undefined> {
    try {
      return (await stat(join(this.#path, name))).mtime;
    } catch (error) {
      if (isAbsent(error)) return undefined;
      throw error;
    }
  }
}

function suffixOf(key: string): string {
  return MARK + key.replaceAll("/", MARK);
}

/** The key of an upload, from its file's name; undefined for every other file. */
function keyOf(name: string): string | undefined {
  const [id, ...segments] = name.split(MARK);
  return id === CLAIM || segments.length === 0 ? undefined : segments.join("/");
}
