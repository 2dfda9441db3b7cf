import { ByteWriter } from "../bytes/cursor.ts";
import { MiB } from "../bytes/size.ts";
import { AppError } from "../errors.ts";
import type { Repository } from "./config.ts";
import { encodeFramed, type FramedKind, openFramed } from "./framed-object.ts";
import { indexKey, newUuid } from "./names.ts";
import type { CompletedPack } from "./pack-assembly.ts";
import type { PackDirectory } from "./pack-directory.ts";
import { readStoredDirectory, writeStoredDirectory } from "./stored-directory.ts";

/**
 * An index object (FORMAT.md, "Index"): the stored directories of complete packs, as advice for dedup.
 *
 *     u32 packs; for each: pack 16 B, u32 slots, u64 bytes of blobs, the stored directory
 */
const INDEX: FramedKind = {
  type: "index",
  magic: "BLKHINDX",
  version: 1,
  versionCode: "E_INDEX_VERSION",
  damaged: indexError,
};

/** Longer index objects are not read. Writers stay below: `FLUSH_BYTES` and one directory. */
export const INDEX_OBJECT_MAX = 16 * MiB;

/** A pack whose directory stands in an index object. */
export type IndexedPack = Pick<CompletedPack, "pack" | "directory" | "storedDirectory">;

/** @param key of the object that the bytes are for. */
export function encodeIndexObject(
  repository: Repository,
  key: string,
  packs: readonly IndexedPack[],
): Buffer {
  const body = new ByteWriter().u32(packs.length);
  for (const pack of packs) writeStoredDirectory(body, pack);
  return encodeFramed(repository, INDEX, key, body.finish());
}

/** The directories in an index object, decoded one after the other. Throws as `decodeIndexedPacks`. */
export function* decodeIndexObject(
  repository: Repository,
  key: string,
  bytes: Buffer,
): Generator<PackDirectory, void> {
  for (const { directory } of decodeIndexedPacks(repository, key, bytes)) yield directory;
}

/**
 * The packs in an index object, decoded one after the other; their stored directories are views on `bytes` or on what
 * was opened of it.
 * @throws AppError E_INDEX, E_SEAL, E_PACK_DIRECTORY, E_TRUNCATED, E_TRAILING (corrupt), E_INDEX_VERSION (usage).
 */
export function* decodeIndexedPacks(
  repository: Repository,
  key: string,
  bytes: Buffer,
): Generator<IndexedPack, void> {
  const what = `index object ${key}`;
  const body = openFramed(repository, INDEX, key, bytes, what);
  for (let left = body.u32(); left > 0; left--) {
    const found = readStoredDirectory(repository, body, (why) => indexError(what, why));
    yield { pack: found.directory.pack, ...found };
  }
  body.end();
}

function indexError(what: string, why: string): AppError {
  return new AppError("corrupt", "E_INDEX", `The ${what} is damaged: ${why}`);
}

/** Fetches an index object. @throws AppError E_NO_OBJECT, E_OBJECT_SIZE; those of `decodeIndexObject` come later. */
export async function readIndexObject(
  repository: Repository,
  key: string,
  signal: AbortSignal,
): Promise<Iterable<PackDirectory>> {
  return decodeIndexObject(repository, key, await repository.store.get(key, INDEX_OBJECT_MAX, signal));
}

export interface IndexWriterOptions {
  /** Directories waiting, in bytes, that make `add` write an object. */
  readonly flushBytes?: number;
  /** Milliseconds after which `add` writes what waits. */
  readonly flushMs?: number;
  /** Told of each object once it is stored, with the packs in it. */
  readonly onWritten?: (key: string, packs: readonly string[]) => void;
}

const FLUSH_BYTES = 8 * MiB;
const FLUSH_MS = 30_000;

/**
 * Writes the directories of complete packs as index objects, so that the next run finds them, also when this one
 * is interrupted. Memory is `flushBytes` and one directory.
 */
export class IndexWriter {
  readonly #repository: Repository;
  readonly #source: string;
  readonly #flushBytes: number;
  readonly #flushMs: number;
  readonly #onWritten: (key: string, packs: readonly string[]) => void;
  #waiting: IndexedPack[] = [];
  #waitingBytes = 0;
  #waitingSince = 0;

  constructor(repository: Repository, source: string, options: IndexWriterOptions = {}) {
    this.#repository = repository;
    this.#source = source;
    this.#flushBytes = options.flushBytes ?? FLUSH_BYTES;
    this.#flushMs = options.flushMs ?? FLUSH_MS;
    this.#onWritten = options.onWritten ?? ((): void => undefined);
  }

  /**
   * Takes a pack that is complete (R11), and writes what waits when it has become much or old. Time is looked at
   * only here: between two packs nothing is lost but what the one before brought.
   */
  async add(pack: IndexedPack, signal: AbortSignal): Promise<void> {
    if (this.#waiting.length === 0) this.#waitingSince = performance.now();
    this.#waiting.push(pack);
    this.#waitingBytes += pack.storedDirectory.length;
    const old = performance.now() - this.#waitingSince >= this.#flushMs;
    if (old || this.#waitingBytes >= this.#flushBytes) await this.flush(signal);
  }

  /**
   * Writes what waits: at the end of a run, before its manifest, also when the run fails.
   * @throws errors of the store; what waits then goes on waiting, for another try when the run cleans up.
   */
  async flush(signal: AbortSignal): Promise<void> {
    const packs = [...this.#waiting];
    if (packs.length === 0) return;
    const key = indexKey(this.#source, newUuid());
    await this.#repository.store.put(key, encodeIndexObject(this.#repository, key, packs), signal);
    this.#waiting = this.#waiting.slice(packs.length);
    this.#waitingBytes = this.#waiting.reduce((sum, { storedDirectory }) => sum + storedDirectory.length, 0);
    this.#onWritten(
      key,
      packs.map(({ pack }) => pack),
    );
  }
}
