import { open, readdir, rename, stat, type FileHandle } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { TiB } from "../bytes/size.ts";
import { DirectWriter } from "../disk/direct-writer.ts";
import { only, untilAborted } from "./body.ts";
import { systemCode } from "../errors.ts";
import { directoryError, isAbsent, noDirectory } from "./directory-errors.ts";
import { removeIfThere, TemporaryFolder } from "./directory-temporary.ts";
import { FileUpload } from "./directory-upload.ts";
import {
  makeDurableDirectory,
  publish,
  readAll,
  sameContent,
  syncDirectory,
  writeAll,
  type Link,
} from "./durable.ts";
import { checkKey, checkPrefix, isSegment } from "./key.ts";
import { noObject, objectTaken, wrongSize } from "./object-errors.ts";
import type {
  ObjectInfo,
  ObjectStore,
  PartUpload,
  PendingUpload,
  RequestCounts,
  StoreLimits,
} from "./store.ts";

/** Holds what is not published yet; no key begins with a dot, so it is in nobody's way. */
const TEMPORARY = ".tmp";
/** Folders known to be durable, remembered so that each is synced once; forgotten when there are too many. */
const FOLDERS_MAX = 1000;
/** Files looked at together while listing. */
const STAT_BATCH = 32;

/**
 * Objects as files: the key is the path below the root, so that any tool can copy the directory to a bucket and
 * back.
 *
 * Everything is written to a temporary file, synced, given its name by a hard link (which fails when the name is
 * taken, where a rename would replace), and then the folder is synced. The directory is one file system. A listing
 * holds the names of one folder in memory.
 */
export class DirectoryStore implements ObjectStore {
  readonly location: string;
  readonly limits: StoreLimits = { partSizeMin: 1, partSizeMax: TiB, partsMax: 1_000_000 };
  readonly #root: string;
  readonly #link: Link | undefined;
  readonly #temporary: TemporaryFolder;
  readonly #folders = new Map<string, Promise<void>>();

  /** @param options.link instead of the file system's own, for one that has none. */
  constructor(path: string, options: { readonly link?: Link } = {}) {
    this.location = path;
    this.#root = resolve(path);
    this.#link = options.link;
    this.#temporary = new TemporaryFolder(join(this.#root, TEMPORARY));
  }

  async put(key: string, body: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#create(key, only(body), signal, (file) => this.#publish(file, key, signal));
  }

  async putStream(key: string, body: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<number> {
    return this.#create(key, body, signal, (file) => this.#publish(file, key, signal));
  }

  async replace(key: string, body: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#create(key, only(body), signal, async (file) => {
      const target = this.#path(key);
      await this.#makeFolder(dirname(target));
      await rename(file, target);
      await syncDirectory(dirname(target));
    });
  }

  async beginUpload(key: string, signal: AbortSignal): Promise<PartUpload> {
    checkKey(key);
    return this.#guard(key, signal, async () => {
      await this.#temporary.prepare();
      const path = this.#temporary.newUpload(key);
      return new FileUpload(key, await open(path, "wx"), new DirectWriter(path), {
        publish: (endSignal) => this.#publish(path, key, endSignal),
        discard: () => removeIfThere(path),
        fail: (error) => directoryError(error, this.location, key),
      });
    });
  }

  async get(key: string, limit: number, signal: AbortSignal): Promise<Buffer> {
    return this.#reading(key, signal, (file, size) => {
      if (size > limit)
        throw wrongSize(this.location, key, `has ${size} bytes where at most ${limit} can be`);
      return this.#read(key, file, 0, Buffer.allocUnsafe(size), signal);
    });
  }

  async getRange(key: string, offset: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#opened(key, signal, (file) => this.#read(key, file, offset, into, signal));
  }

  async getTail(key: string, length: number, signal: AbortSignal): Promise<{ bytes: Buffer; size: number }> {
    return this.#reading(key, signal, async (file, size) => {
      const bytes = Buffer.allocUnsafe(Math.min(length, size));
      return { bytes: await this.#read(key, file, size - bytes.length, bytes, signal), size };
    });
  }

  async head(key: string, signal: AbortSignal): Promise<ObjectInfo | undefined> {
    const path = this.#path(key);
    return this.#guard(key, signal, async () => {
      const info = await infoOf(path, key);
      if (info === undefined) await this.#checkRoot();
      return info;
    });
  }

  async *list(prefix: string, signal: AbortSignal): AsyncGenerator<ObjectInfo> {
    checkPrefix(prefix);
    await this.#guard(prefix, signal, () => this.#checkRoot());
    yield* this.#walk(prefix.slice(0, prefix.lastIndexOf("/") + 1), prefix, signal);
  }

  async delete(keys: readonly string[], signal: AbortSignal): Promise<void> {
    const folders = new Set<string>();
    for (const key of keys) {
      const path = this.#path(key);
      await this.#guard(key, signal, () => removeIfThere(path));
      folders.add(dirname(path));
    }
    for (const folder of folders) {
      await this.#guard(folder, signal, () => unlessAbsent(syncDirectory(folder)));
    }
  }

  async *listUploads(prefix: string, signal: AbortSignal): AsyncGenerator<PendingUpload> {
    checkPrefix(prefix);
    const uploads = await this.#guard(prefix, signal, () => this.#temporary.uploads(prefix));
    yield* uploads.sort((a, b) => (a.key < b.key ? -1 : 1));
  }

  async abortUpload(upload: PendingUpload, signal: AbortSignal): Promise<void> {
    const path = this.#temporary.fileOf(upload);
    await this.#guard(upload.key, signal, () => removeIfThere(path));
  }

  async now(signal: AbortSignal): Promise<Date> {
    return this.#guard("the clock", signal, async () => {
      await this.#temporary.prepare();
      return this.#temporary.now();
    });
  }

  /** A directory costs no requests. */
  requests(): RequestCounts {
    return {};
  }

  close(): void {
    this.#folders.clear();
  }

  #path(key: string): string {
    checkKey(key);
    return join(this.#root, key);
  }

  /** Translates what the file system throws; an abort comes first. */
  async #guard<T>(what: string, signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    signal.throwIfAborted();
    try {
      return await work();
    } catch (error) {
      signal.throwIfAborted();
      throw directoryError(error, this.location, what);
    }
  }

  /**
   * Writes a synced temporary file and hands it to `name`, which gives it its place; it is gone in any case.
   * An error of the body itself comes out as it is.
   */
  async #create(
    key: string,
    body: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
    name: (path: string) => Promise<void>,
  ): Promise<number> {
    checkKey(key);
    const path = this.#temporary.newFile();
    const file = await this.#guard(key, signal, async () => {
      await this.#temporary.prepare();
      return open(path, "wx");
    });
    try {
      let size = 0;
      for await (const bytes of untilAborted(body, signal)) {
        const position = size;
        await this.#guard(key, signal, () => writeAll(file, bytes, position, signal));
        size += bytes.length;
      }
      await this.#guard(key, signal, async () => {
        await file.sync();
        await file.close();
        await name(path);
      });
      return size;
    } catch (error) {
      await file.close().catch(() => {}); // closed, or of no use any more
      await removeIfThere(path);
      throw error;
    }
  }

  async #publish(path: string, key: string, signal: AbortSignal): Promise<void> {
    const target = this.#path(key);
    await this.#makeFolder(dirname(target));
    const done = await publish(path, target, this.#temporary.claimOf(key), signal, this.#link);
    if (done === "published") return;
    if (!(await sameContent(path, target, signal))) throw objectTaken(this.location, key);
    await syncDirectory(dirname(target)); // whoever wrote it may not have come to that yet
    await removeIfThere(path);
  }

  async #makeFolder(path: string): Promise<void> {
    if (this.#folders.size > FOLDERS_MAX) this.#folders.clear();
    const made = this.#folders.get(path) ?? makeDurableDirectory(this.#root, path);
    this.#folders.set(path, made);
    try {
      await made;
    } catch (error) {
      this.#folders.delete(path);
      throw error;
    }
  }

  async #reading<T>(
    key: string,
    signal: AbortSignal,
    work: (file: FileHandle, size: number) => Promise<T>,
  ): Promise<T> {
    return this.#opened(key, signal, async (file) => {
      const found = await file.stat();
      if (!found.isFile()) throw noObject(this.location, key);
      return await work(file, found.size);
    });
  }

  async #opened<T>(key: string, signal: AbortSignal, work: (file: FileHandle) => Promise<T>): Promise<T> {
    return this.#guard(key, signal, async () => {
      const file = await this.#open(this.#path(key), key);
      try {
        return await work(file);
      } catch (error) {
        throw systemCode(error) === "EISDIR" ? noObject(this.location, key, error) : error;
      } finally {
        await file.close();
      }
    });
  }

  async #open(path: string, key: string): Promise<FileHandle> {
    try {
      return await open(path, "r");
    } catch (error) {
      if (!isAbsent(error)) throw error;
      await this.#checkRoot();
      throw noObject(this.location, key, error);
    }
  }

  async #read<T extends Uint8Array>(
    key: string,
    file: FileHandle,
    offset: number,
    into: T,
    signal: AbortSignal,
  ): Promise<T> {
    const done = await readAll(file, into, offset, signal);
    if (done < into.length) {
      throw wrongSize(this.location, key, `ends at ${offset + done}, before ${offset + into.length}`);
    }
    return into;
  }

  async #checkRoot(): Promise<void> {
    const found = await unlessAbsent(stat(this.#root));
    if (found?.isDirectory() !== true) throw noDirectory(this.location);
  }

  /** @param folder "" or a path below the root that ends in "/". */
  async *#walk(folder: string, prefix: string, signal: AbortSignal): AsyncGenerator<ObjectInfo> {
    const names = await this.#guard(folder, signal, () => sortedNames(join(this.#root, folder)));
    const wanted = names.filter((name) => {
      const path = folder + name;
      return path.startsWith(prefix) || (name.endsWith("/") && prefix.startsWith(path));
    });
    for (let start = 0; start < wanted.length; start += STAT_BATCH) {
      const batch = wanted.slice(start, start + STAT_BATCH);
      const infos = await this.#guard(folder, signal, () =>
        Promise.all(batch.map((name) => infoOf(join(this.#root, folder, name), folder + name))),
      );
      for (const [index, name] of batch.entries()) {
        if (name.endsWith("/")) yield* this.#walk(folder + name, prefix, signal);
        else if (infos[index] !== undefined) yield infos[index];
      }
    }
  }
}

/** The names in a folder that can be part of a key, those of folders with "/" at the end, in the order of keys. */
async function sortedNames(folder: string): Promise<string[]> {
  const entries = (await unlessAbsent(readdir(folder, { withFileTypes: true }))) ?? [];
  return entries
    .filter((entry) => isSegment(entry.name))
    .map((entry) => (entry.isDirectory() ? `${entry.name}/` : entry.name))
    .sort(); // keys are ASCII, so this is the order of bytes
}

/** Undefined when there is no such file. */
async function infoOf(path: string, key: string): Promise<ObjectInfo | undefined> {
  const found = await unlessAbsent(stat(path));
  return found?.isFile() === true ? { key, size: found.size, lastModified: found.mtime } : undefined;
}

async function unlessAbsent<T>(work: Promise<T>): Promise<T | undefined> {
  try {
    return await work;
  } catch (error) {
    if (isAbsent(error)) return undefined;
    throw error;
  }
}
