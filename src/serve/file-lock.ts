import { DatabaseSync } from "node:sqlite";
import { AppError, messageOf } from "../errors.ts";

/** Result code of SQLite: another connection holds the file (sqlite.org/rescode.html). */
const SQLITE_BUSY = 5;

/**
 * A lock that one process at a time holds, and that ends with the process however it ends: the kernel's own on a file,
 * which SQLite takes (Node has no call for it). The file stays, empty: to remove it would let two hold what each takes
 * for the lock.
 */
export class FileLock {
  readonly #database: DatabaseSync;

  private constructor(database: DatabaseSync) {
    this.#database = database;
  }

  /**
   * Does not wait.
   *
   * @param path of a file for this alone; made when it is not there.
   * @param what names in the error what is locked.
   * @throws AppError E_FILE_LOCKED (locked), E_FILE_LOCK (usage) when the file cannot be had.
   */
  static take(path: string, what: string): FileLock {
    let database: DatabaseSync | undefined;
    try {
      database = new DatabaseSync(path);
      database.exec("PRAGMA journal_mode = OFF; BEGIN EXCLUSIVE");
      return new FileLock(database);
    } catch (error) {
      database?.close();
      const busy = error instanceof Error && "errcode" in error && Number(error.errcode) === SQLITE_BUSY;
      if (busy) {
        const message = `${what} is in use by another process`;
        throw new AppError("locked", "E_FILE_LOCKED", message, { path }, error);
      }
      throw new AppError("usage", "E_FILE_LOCK", `Cannot lock ${path}: ${messageOf(error)}`, { path }, error);
    }
  }

  /** Calling it twice is a no-op. */
  release(): void {
    if (this.#database.isOpen) this.#database.close();
  }
}
