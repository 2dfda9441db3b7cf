import { randomBytes } from "node:crypto";
import { link, open, realpath, rename, rm, stat, type FileHandle } from "node:fs/promises";
import { dirname, join } from "node:path";
import { AppError, messageOf, systemCode } from "../errors.ts";
import { kindOfPath, openFailed } from "./raw-file.ts";

/**
 * A new file that stands beside its place, under a hidden name that ends in ".partial" (mode 0600), until it is
 * complete: what fails before leaves nothing that looks complete.
 */
export class PartialFile {
  /** Its hidden name. */
  readonly path: string;
  /** The name it will have. */
  readonly place: string;
  readonly handle: FileHandle;
  readonly #replace: boolean;
  #state: "partial" | "published" | "gone" = "partial";

  private constructor(path: string, place: string, handle: FileHandle, replace: boolean) {
    this.path = path;
    this.place = place;
    this.handle = handle;
    this.#replace = replace;
  }

  /**
   * @param options force: replace an existing file, which stays untouched until `publish` and then passes on its
   *   owner and mode. A symbolic link to it stays a link.
   * @throws AppError E_TARGET_EXISTS, E_DISK_KIND (usage), E_DISK_MISSING (notFound: no such folder),
   *   E_DISK_PERMISSION (credentials), E_TARGET_FULL (full).
   */
  static async create(path: string, options: { readonly force: boolean }): Promise<PartialFile> {
    const kind = await kindOfPath(path);
    if (kind === "device" || kind === "other") {
      throw new AppError("usage", "E_DISK_KIND", `${path} exists and is not a file; it cannot be replaced`);
    }
    if (kind === "file" && !options.force) throw targetExists(path);
    const place = kind === "file" ? await realpath(path) : path;
    const partial = join(dirname(place), `.blockhaul-${randomBytes(6).toString("hex")}.partial`);
    const handle = await open(partial, "wx+", 0o600).catch((error: unknown) => {
      throw systemCode(error) === "ENOENT" ? openFailed(dirname(place), error) : openFailed(place, error);
    });
    return new PartialFile(partial, place, handle, options.force);
  }

  /**
   * Makes it durable and gives it its name.
   * @throws AppError E_TARGET_EXISTS (usage), E_TARGET_NAME (source).
   */
  async publish(): Promise<void> {
    try {
      if (this.#replace) await takeOver(this.handle, this.place);
      await this.handle.sync();
      await (this.#replace ? rename(this.path, this.place) : renameNew(this.path, this.place));
      this.#state = "published";
      await syncFolder(dirname(this.place));
    } catch (error) {
      if (error instanceof AppError) throw error;
      const message = `Cannot give the restored disk its name ${this.place}: ${messageOf(error)}`;
      throw new AppError("source", "E_TARGET_NAME", message, { path: this.place }, error);
    }
  }

  /** Without `publish` before it, removes the file. Safe to call twice. */
  async close(): Promise<void> {
    await this.handle.close();
    if (this.#state !== "partial") return;
    this.#state = "gone";
    await rm(this.path, { force: true });
  }
}

/** The owner and mode of the file that is about to be replaced, if there is one still. */
async function takeOver(handle: FileHandle, path: string): Promise<void> {
  const old = await stat(path).catch(() => undefined);
  if (old === undefined) return;
  await handle.chmod(old.mode & 0o7777);
  // Only root may give a file away; for everybody else the new file is theirs, as with any copy.
  await handle.chown(old.uid, old.gid).catch(() => undefined);
}

/** Renames, but never over a file that came into being meanwhile. */
async function renameNew(from: string, to: string): Promise<void> {
  try {
    await link(from, to);
  } catch (error) {
    if (systemCode(error) === "EEXIST") throw targetExists(to, error);
    // A file system without hard links: what remains is to look first.
    if ((await kindOfPath(to)) !== "absent") throw targetExists(to);
    await rename(from, to);
    return;
  }
  await rm(from);
}

/** Makes a new name in the folder survive a power failure. */
async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, "r");
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

function targetExists(path: string, cause?: unknown): AppError {
  const message = `${path} exists already; remove it, choose another path, or use --force`;
  return new AppError("usage", "E_TARGET_EXISTS", message, { path }, cause);
}
