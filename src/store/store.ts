/** S3's retention modes: who may end `governance` early has a permission of its own; `compliance` nobody ends. */
export type LockMode = "governance" | "compliance";

/** Until when nobody can delete an object's bytes (S3 user guide, "Locking objects with Object Lock"). */
export interface Retention {
  readonly mode: LockMode;
  /** By the store's clock. */
  readonly until: Date;
}

/** An object as LIST and HEAD tell it. */
export interface ObjectInfo {
  readonly key: string;
  readonly size: number;
  /** By the store's clock, not ours. AWS dates a multipart object by its initiation. */
  readonly lastModified: Date;
  /** By HEAD alone, of an object that is or was locked. */
  readonly retention?: Retention;
}

/** An upload that was begun and neither completed nor aborted: billed, and invisible to LIST. */
export interface PendingUpload {
  readonly key: string;
  readonly uploadId: string;
  /** By the store's clock. A directory tells when a part was last written, which is never earlier. */
  readonly initiated: Date;
}

/** Requests sent, retries included, by S3 operation ("PutObject", "UploadPart", …); what the bill counts. */
export type RequestCounts = Readonly<Record<string, number>>;

/** What a store can take, in bytes and counts. */
export interface StoreLimits {
  /** Every part but the last is at least this long. */
  readonly partSizeMin: number;
  readonly partSizeMax: number;
  readonly partsMax: number;
}

/**
 * One object going up in parts, for packs. `part` is called in the order of numbers, 0, 1, 2 and so on, and any
 * number of calls may be in flight at once; all parts but the last are of equal size, at least `limits.partSizeMin`.
 *
 * Whoever began an upload calls `complete` or, in any other case, `abort`. Wrong numbers or sizes, and an upload
 * used after its end or after a part has failed, are E_UPLOAD (bug).
 */
export interface PartUpload {
  readonly key: string;

  /**
   * Sends a part; retried by itself. The bytes belong to the upload until the call settles, and are not copied.
   */
  part(number: number, bytes: Uint8Array, signal: AbortSignal): Promise<void>;

  /**
   * Publishes the object; every part must have settled. After an ambiguous answer the object is looked for.
   * A failure aborts the upload.
   * @throws AppError; the object may or may not be there only when the error is `unavailable`.
   */
  complete(signal: AbortSignal): Promise<void>;

  /**
   * Drops what was sent, when the parts still in flight have been stopped. Never deletes a published object, and
   * never throws: what could not be dropped, as when the server is away, is found later by `listUploads`.
   */
  abort(): Promise<void>;
}

/**
 * What a repository needs from storage. Every implementation passes `test/contract/object-store.ts`.
 *
 * - Keys are relative to the repository's prefix: "/"-separated segments of `[A-Za-z0-9._-]` that do not begin with a
 *   dot, 200 bytes at most; no key is the folder of another. Anything else is E_KEY (bug).
 * - Read-after-write: after a write resolves, get, head and list see the object.
 * - All or nothing: a failed or aborted write leaves no object, and never harms one that is there.
 * - Objects are written once: nothing here overwrites, but for `replace`.
 * - `signal` aborted before the call: nothing is changed; during it: ends soon, with the signal's reason.
 * - Retries of what is worth retrying happen inside; every error is an AppError that names the store and key:
 *   E_NO_OBJECT, E_NO_BUCKET (notFound), E_EXISTS (locked), E_CREDENTIALS, E_ACCESS, E_CLOCK (credentials),
 *   E_REGION, E_TLS, E_UNSUPPORTED, E_REFUSED, E_STORE_SPLIT (usage), E_OBJECT_SIZE (corrupt), E_STORE_FULL (full),
 *   E_STORE (unavailable), E_STORE_BUG (bug).
 */
export interface ObjectStore {
  /** As the user wrote it, without secrets: "s3://bucket/prefix" or a path. */
  readonly location: string;
  readonly limits: StoreLimits;

  /**
   * Creates an object.
   * @throws AppError E_EXISTS when the key is taken by other bytes. Equal bytes are success: a lost reply and its
   *   repetition must not fail (R19). On a server that does not know `If-None-Match` the key is looked for before,
   *   which leaves two writers of one key at the same moment: names that matter are nobody else's.
   */
  put(key: string, body: Uint8Array, signal: AbortSignal): Promise<void>;

  /** Creates or replaces a small object; for heartbeats only. */
  replace(key: string, body: Uint8Array, signal: AbortSignal): Promise<void>;

  /**
   * Creates an object from a stream of unknown length, with bounded memory.
   *
   * @returns its size in bytes. @throws as `put`; an error of `body` itself comes out as it is.
   */
  putStream(key: string, body: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<number>;

  /** Begins an upload in parts, under a key that nobody else uses. */
  beginUpload(key: string, signal: AbortSignal): Promise<PartUpload>;

  /**
   * A whole object. @param limit bytes; a larger object is E_OBJECT_SIZE (corrupt), before it is read.
   * @throws AppError E_NO_OBJECT.
   */
  get(key: string, limit: number, signal: AbortSignal): Promise<Buffer>;

  /**
   * Fills `into` with the bytes from `offset` on. @throws AppError E_NO_OBJECT; E_OBJECT_SIZE (corrupt) when the
   * object ends before.
   */
  getRange(key: string, offset: number, into: Uint8Array, signal: AbortSignal): Promise<void>;

  /** The last `length` bytes, or the whole object if it is shorter, with the object's size. */
  getTail(key: string, length: number, signal: AbortSignal): Promise<{ bytes: Buffer; size: number }>;

  head(key: string, signal: AbortSignal): Promise<ObjectInfo | undefined>;

  /** Every object whose key starts with `prefix`, in byte order of keys, page by page. */
  list(prefix: string, signal: AbortSignal): AsyncIterable<ObjectInfo>;

  /** Deletes objects; those not there are no error. */
  delete(keys: readonly string[], signal: AbortSignal): Promise<void>;

  /**
   * Uploads whose key starts with `prefix`, in the order of keys. MinIO tells of an upload only when `prefix` is its
   * whole key; it removes forgotten ones by itself after a day.
   */
  listUploads(prefix: string, signal: AbortSignal): AsyncIterable<PendingUpload>;

  abortUpload(upload: PendingUpload, signal: AbortSignal): Promise<void>;

  /** The store's clock. S3: the Date header of the latest answer (asks when there was none); directory: a file's mtime. */
  now(signal: AbortSignal): Promise<Date>;

  /** A copy; grows while the store is used. */
  requests(): RequestCounts;

  close(): void;
}
