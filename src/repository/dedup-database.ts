import { rmSync } from "node:fs";
import { DatabaseSync, type StatementSync } from "node:sqlite";
import { systemCode } from "../errors.ts";
import { uuidBytes, uuidText } from "./names.ts";
import type { PackDirectory } from "./pack-directory.ts";

/** Where a chunk lives. */
export interface Address {
  readonly pack: string;
  readonly slot: number;
}

/** Changes with the tables; a file of another version is made anew. */
const SCHEMA_VERSION = 1;

/** Another process holds the file for one batch of rows at a time. */
const BUSY_MS = 5000;

/** SQLite's memory for pages, in KiB. */
const PAGE_CACHE_KIB = 32 * 1024;

/** Rows of a pack that no index object ever named go after this long; its run is over by then. */
const PENDING_MS = 7 * 24 * 3600 * 1000;

/** Result codes that say the file is not what was written (sqlite.org/rescode.html). */
const SQLITE_CORRUPT = 11;
const SQLITE_NOTADB = 26;

/**
 * A row of `chunks` counts while its pack is listed by an index object (R5), or belongs to the run that asks. Packs'
 * numbers are never given out twice, so that a row without its pack means nothing.
 */
const SCHEMA = `
  CREATE TABLE meta (repository TEXT NOT NULL);
  CREATE TABLE objects (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE);
  CREATE TABLE packs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, uuid BLOB NOT NULL UNIQUE, source TEXT NOT NULL,
    listed INTEGER NOT NULL, owner TEXT, added INTEGER NOT NULL);
  CREATE TABLE listings (object INTEGER NOT NULL, pack INTEGER NOT NULL, PRIMARY KEY (object, pack)) WITHOUT ROWID;
  CREATE TABLE chunks (id BLOB PRIMARY KEY, pack INTEGER NOT NULL, slot INTEGER NOT NULL) WITHOUT ROWID;
  PRAGMA user_version = ${SCHEMA_VERSION};
`;

/** True for an error of SQLite, whatever it says: none of them may fail a backup. */
export function isDatabaseError(error: unknown): boolean {
  return systemCode(error) === "ERR_SQLITE_ERROR" || systemCode(error) === "ERR_INVALID_STATE";
}

/** True when the file is damaged and must be made anew. */
export function isDamagedDatabase(error: unknown): boolean {
  const code = error instanceof Error && "errcode" in error ? Number(error.errcode) & 0xff : undefined;
  return code === SQLITE_CORRUPT || code === SQLITE_NOTADB;
}

/** Deletes a database file with what SQLite keeps beside it. */
export function removeDatabase(file: string): void {
  for (const suffix of ["", "-wal", "-shm", "-journal"]) rmSync(file + suffix, { force: true });
}

/**
 * The tables behind the dedup index: plain SQL, every call synchronous and short. Any of them may throw an error of
 * SQLite (`isDatabaseError`).
 */
export class DedupDatabase {
  readonly #database: DatabaseSync;
  readonly #lookup: StatementSync;
  readonly #insertChunk: StatementSync;
  /** Told apart from the packs of other runs. */
  readonly #owner: string;
  readonly #source: string | null;

  /**
   * Opens or creates the file.
   *
   * @param owner names the run; packs it adds count for it alone until an index object lists them.
   * @param source only chunks of this source's index objects, and the run's own, are found; undefined: all.
   */
  constructor(file: string, repository: string, owner: string, source: string | undefined) {
    this.#owner = owner;
    this.#source = source ?? null;
    this.#database = new DatabaseSync(file);
    try {
      this.#database.exec(
        `PRAGMA busy_timeout = ${BUSY_MS}; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL`,
      );
      this.#database.exec(`PRAGMA cache_size = -${PAGE_CACHE_KIB}`);
      this.#prepareTables(repository);
      this.#lookup = this.#database.prepare(
        "SELECT p.uuid AS pack, c.slot AS slot FROM chunks c JOIN packs p ON p.id = c.pack" +
          " WHERE c.id = :id AND (p.owner = :owner OR (p.listed > 0 AND (:source IS NULL OR p.source = :source)))",
      );
      this.#insertChunk = this.#database.prepare(
        "INSERT OR REPLACE INTO chunks (id, pack, slot) VALUES (?, ?, ?)",
      );
    } catch (error) {
      this.#database.close();
      throw error;
    }
  }

  close(): void {
    this.#database.close();
  }

  lookup(id: Uint8Array): Address | undefined {
    const row = this.#lookup.get({ id, owner: this.#owner, source: this.#source });
    if (row === undefined) return undefined;
    const { pack, slot } = row;
    // SQLite keeps types loosely: a damaged row is no row.
    if (!(pack instanceof Uint8Array) || pack.length !== 16 || typeof slot !== "number") return undefined;
    return { pack: uuidText(pack), slot };
  }

  /** Adds packs with their chunks in one transaction. They count for this run until `list` names them. */
  addPacks(directories: readonly PackDirectory[], source: string): void {
    const insertPack = this.#database.prepare(
      "INSERT INTO packs (uuid, source, listed, owner, added) VALUES (?, ?, 0, ?, ?) ON CONFLICT DO NOTHING RETURNING id",
    );
    this.#transaction(() => {
      for (const directory of directories) {
        const row = insertPack.get(uuidBytes(directory.pack), source, this.#owner, Date.now());
        if (row === undefined) continue; // known from another index object
        const pack = Number(row["id"]);
        for (let slot = 0; slot < directory.slotCount; slot++) {
          this.#insertChunk.run(directory.idAt(slot), pack, slot);
        }
      }
    });
  }

  /** Keys of the index objects whose packs count, those that begin with `prefix`. */
  listed(prefix: string): Set<string> {
    const rows = this.#database.prepare("SELECT key FROM objects").all();
    return new Set(rows.map((row) => String(row["key"])).filter((key) => key.startsWith(prefix)));
  }

  /**
   * From now on the packs count for everybody: an index object lists them (R5). Does nothing when one of them is not
   * here; the object is then read like any other by the next run.
   */
  list(key: string, packs: readonly string[]): void {
    const count = this.#database.prepare("UPDATE packs SET listed = listed + 1 WHERE uuid = ? RETURNING id");
    const find = this.#database.prepare("SELECT id FROM packs WHERE uuid = ?");
    const enter = this.#database.prepare(
      "INSERT INTO objects (key) VALUES (?) ON CONFLICT DO NOTHING RETURNING id",
    );
    const bind = this.#database.prepare("INSERT INTO listings (object, pack) VALUES (?, ?)");
    this.#transaction(() => {
      if (packs.some((pack) => find.get(uuidBytes(pack)) === undefined)) return;
      const object = enter.get(key);
      if (object === undefined) return; // another process was quicker
      for (const pack of new Set(packs)) bind.run(object["id"]!, count.get(uuidBytes(pack))!["id"]!);
    });
  }

  /** The objects are gone: packs that no other one lists count no more (R5). */
  unlist(keys: readonly string[]): void {
    const find = this.#database.prepare("SELECT id FROM objects WHERE key = ?");
    const count = this.#database.prepare(
      "UPDATE packs SET listed = listed - 1, owner = NULL WHERE id IN (SELECT pack FROM listings WHERE object = ?)",
    );
    const unbind = this.#database.prepare("DELETE FROM listings WHERE object = ?");
    const drop = this.#database.prepare("DELETE FROM objects WHERE id = ?");
    this.#transaction(() => {
      for (const key of keys) {
        const object = find.get(key)?.["id"];
        if (object === undefined) continue;
        for (const statement of [count, unbind, drop]) statement.run(object);
      }
    });
  }

  /** Deletes what counts for nobody. Reads every row when there is any such pack. */
  sweep(): void {
    this.#transaction(() => {
      const { changes } = this.#database
        .prepare("DELETE FROM packs WHERE listed = 0 AND (owner IS NULL OR (owner <> ? AND added < ?))")
        .run(this.#owner, Date.now() - PENDING_MS);
      if (Number(changes) > 0)
        this.#database.exec("DELETE FROM chunks WHERE pack NOT IN (SELECT id FROM packs)");
    });
  }

  #prepareTables(repository: string): void {
    this.#transaction(() => {
      const version = this.#database.prepare("PRAGMA user_version").get()!["user_version"];
      if (version === SCHEMA_VERSION && this.#repository() === repository) return;
      for (const table of ["meta", "objects", "packs", "listings", "chunks"]) {
        this.#database.exec(`DROP TABLE IF EXISTS ${table}`);
      }
      this.#database.exec(SCHEMA);
      this.#database.prepare("INSERT INTO meta (repository) VALUES (?)").run(repository);
    });
  }

  #repository(): unknown {
    return this.#database.prepare("SELECT repository FROM meta").get()?.["repository"];
  }

  #transaction(work: () => void): void {
    this.#database.exec("BEGIN IMMEDIATE");
    try {
      work();
      this.#database.exec("COMMIT");
    } catch (error) {
      try {
        this.#database.exec("ROLLBACK");
      } catch {
        // SQLite has rolled back by itself; what led here is the error to tell
      }
      throw error;
    }
  }
}
