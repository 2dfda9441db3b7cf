import { mkdir } from "node:fs/promises";
import { dirname } from "node:path";
import { setImmediate as nextTurn } from "node:timers/promises";
import { AppError, hasCode, messageOf } from "../errors.ts";
import { readDamaged, type DamagedSlots } from "./damaged.ts";
import type { Repository } from "./config.ts";
import {
  DedupDatabase,
  isDamagedDatabase,
  isDatabaseError,
  removeDatabase,
  type Address,
} from "./dedup-database.ts";
import { RunRows } from "./dedup-run.ts";
import { readIndexObject } from "./index-objects.ts";
import { newUuid, parseKey, Prefix } from "./names.ts";
import type { CompletedPack } from "./pack-assembly.ts";
import type { PackDirectory } from "./pack-directory.ts";
import type { PackDirectories } from "./pack-reader.ts";

/**
 * Whose chunks are duplicates: everybody's in the repository, those of the same source, or `off`: only what this run
 * itself stored lately.
 */
export type DedupScope = "repository" | "source" | "off";

export interface DedupOptions {
  /** The database; one for each repository id, deleted by anybody at any time without harm. Its folder is made. */
  readonly file: string;
  readonly repository: Repository;
  readonly scope: DedupScope;
  readonly source: string;
  /** Told in a sentence what does not work and what that means; a backup goes on. */
  readonly warn: (message: string) => void;
}

/** A duplicate that was found, and for which chunk. */
export interface Hit extends Address {
  /** The whole chunk id, 32 B. */
  readonly id: Uint8Array;
}

/** Rows that go into the database at once; another process waits no longer than that. */
const BATCH_ROWS = 16_384;

/** Directories fetched at once while hits are confirmed. */
const CONFIRM_REQUESTS = 8;

/**
 * Chunk id → address, as far as known: advice that may be lost, partial or wrong without harm, as long as every hit
 * is confirmed (R8) before a manifest stands on it.
 *
 * What the repository's index objects list is kept in a local database, so that only new objects are fetched; what
 * this run stores is found at once. Nothing that goes wrong with the database fails a backup.
 */
export class DedupIndex {
  readonly #options: DedupOptions;
  readonly #run = new RunRows();
  readonly #owner = newUuid();
  #database: DedupDatabase | undefined;
  #synced = false;
  #damaged: DamagedSlots = new Map();
  /** Found wrong by `confirm`: packs, and single rows. */
  readonly #refuted = new Set<string>();

  private constructor(options: DedupOptions) {
    this.#options = options;
  }

  /** Opens the database, or makes it anew when it is damaged. Finds nothing of the repository's before `sync`. */
  static async open(options: DedupOptions, signal: AbortSignal): Promise<DedupIndex> {
    signal.throwIfAborted();
    const index = new DedupIndex(options);
    if (options.scope === "off") return index;
    try {
      await mkdir(dirname(options.file), { recursive: true });
      index.#openDatabase();
    } catch (error) {
      index.#giveUp(error);
    }
    return index;
  }

  /**
   * Makes the database say what the repository's index objects say now: fetches those it does not know and drops
   * those that are gone (R5). Reads the damaged slots (R12). To be called once, at the start of a run.
   *
   * @throws errors of the store; AppError E_RECORD (corrupt) for a damaged `damaged/` record.
   */
  async sync(signal: AbortSignal): Promise<void> {
    this.#damaged = await readDamaged(this.#options.repository, signal);
    if (this.#database === undefined) return;
    try {
      await this.#syncObjects(this.#database, signal);
      this.#synced = true;
    } catch (error) {
      if (!isDatabaseError(error)) throw error;
      if (isDamagedDatabase(error)) await this.#startOver(error, signal);
      else this.#giveUp(error);
    }
  }

  /** Slots known to be bad, as of `sync`; for `BadSlots` (R12). */
  get damaged(): DamagedSlots {
    return this.#damaged;
  }

  /** Where a chunk lives: in a pack of this run, or in one that an index object lists. A guess until confirmed (R8). */
  lookup(id: Uint8Array): Address | undefined {
    const found = this.#run.lookup(id) ?? this.#lookupDatabase(id);
    return found === undefined || this.#isBad(id, found) ? undefined : found;
  }

  /** Enters a chunk that this run has put into a pack that is not complete yet; in memory only (R11). */
  remember(id: Uint8Array, pack: string, slot: number): void {
    this.#run.remember(id, pack, slot);
  }

  /**
   * A pack of this run is complete (R11): its rows leave memory for the database, where they count for this run
   * alone until `packsListed`.
   */
  addPack(pack: Pick<CompletedPack, "pack" | "directory">): void {
    const spilled = this.#attempt((database) => database.addPacks([pack.directory], this.#options.source));
    this.#run.complete(pack.directory, !spilled);
  }

  /** An index object that lists these packs is stored; `IndexWriter` calls it (`onWritten`). */
  packsListed(key: string, packs: readonly string[]): void {
    this.#attempt((database) => database.list(key, packs));
  }

  /**
   * R8: checks hits against the packs' own directories; a wrong address would restore a wrong chunk that verifies.
   * To be called for every hit before the commit, in batches of any size: what a directory says never changes.
   *
   * @returns the hits that do not hold: their chunks must be stored. They are not found again.
   * @throws errors of the store but for packs that are gone or damaged.
   */
  async confirm(hits: Iterable<Hit>, directories: PackDirectories, signal: AbortSignal): Promise<Hit[]> {
    const packs = Map.groupBy(hits, (hit) => hit.pack);
    const failed: Hit[] = [];
    const waiting = [...packs];
    while (waiting.length > 0) {
      const some = waiting.splice(0, CONFIRM_REQUESTS);
      const loads = await Promise.allSettled(some.map(([pack]) => loadIfGood(directories, pack, signal)));
      for (const [index, load] of loads.entries()) {
        if (load.status === "rejected") throw load.reason;
        const [pack, ofPack] = some[index]!;
        if (load.value === undefined) this.#refuted.add(pack);
        for (const hit of ofPack) if (!this.#holds(hit, load.value)) failed.push(hit);
      }
    }
    return failed;
  }

  /** Ends the use of the database. */
  close(): void {
    this.#attempt((database) => database.close());
    this.#database = undefined;
  }

  #holds(hit: Hit, directory: PackDirectory | undefined): boolean {
    const bad = this.#damaged.get(hit.pack)?.has(hit.slot) === true;
    if (
      !bad &&
      directory !== undefined &&
      hit.slot < directory.slotCount &&
      directory.idAt(hit.slot).equals(hit.id)
    ) {
      return true;
    }
    this.#refuted.add(rowName(hit.id, hit));
    return false;
  }

  #isBad(id: Uint8Array, address: Address): boolean {
    if (this.#damaged.get(address.pack)?.has(address.slot) === true) return true;
    if (this.#refuted.size === 0) return false;
    return this.#refuted.has(address.pack) || this.#refuted.has(rowName(id, address));
  }

  #lookupDatabase(id: Uint8Array): Address | undefined {
    if (!this.#synced) return undefined; // R5: what was listed when the database was last used may be gone
    let found: Address | undefined;
    this.#attempt((database) => (found = database.lookup(id)));
    return found;
  }

  async #syncObjects(database: DedupDatabase, signal: AbortSignal): Promise<void> {
    const { repository, scope, source } = this.#options;
    const prefix = scope === "source" ? `${Prefix.index}${source}/` : Prefix.index;
    const gone = database.listed(prefix);
    const unknown: string[] = [];
    for await (const { key } of repository.store.list(prefix, signal)) {
      if (!gone.delete(key)) unknown.push(key);
    }
    database.unlist([...gone]);
    for (const key of unknown) await this.#addObject(database, key, signal);
    database.sweep();
  }

  /** Rows first, in batches; that the object lists them comes last, so that a cut leaves nothing half true. */
  async #addObject(database: DedupDatabase, key: string, signal: AbortSignal): Promise<void> {
    const name = parseKey(key);
    if (name?.type !== "index") return;
    const packs: string[] = [];
    let batch: PackDirectory[] = [];
    let rows = 0;
    try {
      for (const directory of await readIndexObject(this.#options.repository, key, signal)) {
        packs.push(directory.pack);
        batch.push(directory);
        rows += directory.slotCount;
        if (rows < BATCH_ROWS) continue;
        database.addPacks(batch, name.source);
        batch = [];
        rows = 0;
        await nextTurn();
        signal.throwIfAborted();
      }
      database.addPacks(batch, name.source);
      database.list(key, packs);
    } catch (error) {
      if (hasCode(error, "E_NO_OBJECT")) return; // collected since it was listed
      if (!(error instanceof AppError) || (error.kind !== "corrupt" && error.code !== "E_INDEX_VERSION"))
        throw error;
      this.#options.warn(`${error.message}; its chunks are stored again where they are needed`);
    }
  }

  async #startOver(error: unknown, signal: AbortSignal): Promise<void> {
    try {
      this.#recreate(error);
      if (this.#database !== undefined) await this.#syncObjects(this.#database, signal);
      this.#synced = true;
    } catch (again) {
      if (!isDatabaseError(again)) throw again;
      this.#giveUp(again);
    }
  }

  #openDatabase(): void {
    try {
      this.#database = this.#newDatabase();
    } catch (error) {
      if (!isDamagedDatabase(error)) throw error;
      this.#recreate(error);
    }
  }

  #newDatabase(): DedupDatabase {
    const { file, repository, scope, source } = this.#options;
    return new DedupDatabase(
      file,
      repository.config.repository,
      this.#owner,
      scope === "source" ? source : undefined,
    );
  }

  #recreate(error: unknown): void {
    const { file, warn } = this.#options;
    warn(`The dedup cache ${file} is damaged (${messageOf(error)}) and is built anew`);
    this.#database?.close();
    this.#database = undefined;
    removeDatabase(file);
    this.#database = this.#newDatabase();
  }

  /** @returns whether the work was done; a failure ends the use of the database and is no failure of the backup. */
  #attempt(work: (database: DedupDatabase) => void): boolean {
    if (this.#database === undefined) return false;
    try {
      work(this.#database);
      return true;
    } catch (error) {
      if (!isDatabaseError(error)) throw error;
      this.#giveUp(error);
      return false;
    }
  }

  #giveUp(error: unknown): void {
    const { file, warn } = this.#options;
    warn(
      `The dedup cache ${file} cannot be used (${messageOf(error)}); chunks that are stored already may be stored again`,
    );
    try {
      this.#database?.close();
    } catch {
      // it could not be used in the first place
    }
    this.#database = undefined;
    if (isDamagedDatabase(error)) removeDatabase(file); // the next run builds it anew
  }
}

function rowName(id: Uint8Array, { pack, slot }: Address): string {
  return `${pack}/${slot} ${Buffer.from(id).toString("latin1")}`;
}

/** The directory; undefined when the pack is gone or damaged. */
async function loadIfGood(
  directories: PackDirectories,
  pack: string,
  signal: AbortSignal,
): Promise<PackDirectory | undefined> {
  try {
    return await directories.load(pack, signal);
  } catch (error) {
    if (error instanceof AppError && (error.kind === "corrupt" || error.kind === "notFound"))
      return undefined;
    throw error;
  }
}
