import { createHash, hash } from "node:crypto";
import { Readable } from "node:stream";
import { AbortMultipartUploadCommand, PutObjectCommand } from "@aws-sdk/client-s3";
import { Upload } from "@aws-sdk/lib-storage";
import { MiB } from "../bytes/size.ts";
import { AppError } from "../errors.ts";
import { untilAborted } from "./body.ts";
import { objectTaken } from "./object-errors.ts";
import type { S3Connection } from "./s3-connection.ts";
import type { LockHeaders, S3Lock } from "./s3-lock.ts";
import { s3ErrorName, s3ErrorStatus } from "./s3-errors.ts";
import { headObject, readRange } from "./s3-read.ts";

/** Bytes of a part: with S3's 10,000 parts, objects up to 78 GiB. About four parts are in memory. */
const PART_SIZE = 8 * MiB;
const PARTS_AT_ONCE = 2;
/** Cleaning up happens while something else has failed, and must not hold that up for long. */
const CLEAN_UP_TIMEOUT_MS = 30_000;
/** Bytes read at a time when comparing. */
const WINDOW = 4 * MiB;

/** What was meant to be stored. */
interface Content {
  readonly size: number;
  /** SHA-256. */
  readonly digest: Buffer;
}

/**
 * Creates objects, never replacing one, and takes its own bytes already there for success (R19): they are the trace
 * of a reply that was lost.
 *
 * `If-None-Match: *` makes that atomic where the server honours it. Some ignore it and some refuse it, so the object is
 * also looked for before: on those servers two writers of one key within the same moment may both succeed, the later
 * one's bytes staying.
 */
export class S3Creator {
  readonly #connection: S3Connection;
  readonly #lock: S3Lock;
  #conditional: { IfNoneMatch?: string } = { IfNoneMatch: "*" };

  constructor(connection: S3Connection, lock: S3Lock) {
    this.#connection = connection;
    this.#lock = lock;
  }

  /** @throws AppError E_EXISTS. */
  async put(key: string, body: Uint8Array, signal: AbortSignal): Promise<void> {
    const content = (): Content => ({ size: body.length, digest: hash("sha256", body, "buffer") });
    if (await this.#isThere(key, content, signal)) return;
    const object = await this.#object(key, signal);
    const command = new PutObjectCommand({ ...object, ...this.#conditional, Body: body });
    try {
      await this.#connection.send(command, key, signal);
    } catch (error) {
      if (this.#refusesCondition(error)) return this.put(key, body, signal);
      if (!isAmbiguous(error) || !(await this.#isThere(key, content, signal))) throw error;
    }
  }

  /**
   * One PutObject for a short stream, a multipart upload otherwise.
   *
   * @returns the size, bytes. @throws AppError E_EXISTS; an error of `body` as it is.
   */
  async putStream(key: string, body: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<number> {
    const source = new Source(body);
    if ((await headObject(this.#connection, key, signal)) !== undefined) {
      await source.drain(signal);
      await this.#isThere(key, () => source.content(), signal);
      return source.content().size;
    }
    try {
      await this.#upload(key, source, signal);
    } catch (error) {
      signal.throwIfAborted();
      if (source.failed !== undefined) throw source.failed.reason;
      const failure = this.#connection.failure(error, "PutObject", key);
      if (!source.finished || !isAmbiguous(failure)) throw failure;
      if (!(await this.#isThere(key, () => source.content(), signal))) throw failure;
    }
    return source.content().size;
  }

  /** @returns false when there is no object. @throws AppError E_EXISTS when there is one with other bytes. */
  async #isThere(key: string, content: () => Content, signal: AbortSignal): Promise<boolean> {
    const found = await headObject(this.#connection, key, signal);
    if (found === undefined) return false;
    const { size, digest } = content();
    if (found.size !== size) throw objectTaken(this.#connection.location, key);
    const stored = createHash("sha256");
    const window = Buffer.allocUnsafe(Math.min(WINDOW, size));
    for (let offset = 0; offset < size; offset += window.length) {
      const into = window.subarray(0, Math.min(window.length, size - offset));
      await readRange(this.#connection, key, offset, into, signal);
      stored.update(into);
    }
    if (!stored.digest().equals(digest)) throw objectTaken(this.#connection.location, key);
    return true;
  }

  /**
   * lib-storage's `Upload`, with our own sending under it: by itself it neither aborts requests under way, nor notices
   * that a part has failed while it waits for the stream.
   */
  async #upload(key: string, source: Source, signal: AbortSignal): Promise<void> {
    const stop = new AbortController();
    const either = AbortSignal.any([signal, stop.signal]);
    const client = await this.#connection.clientFor(async (command) => {
      const cleaning = command instanceof AbortMultipartUploadCommand;
      try {
        const limit = cleaning ? AbortSignal.timeout(CLEAN_UP_TIMEOUT_MS) : either;
        return await this.#connection.send(command, key, limit);
      } catch (error) {
        stop.abort(error); // no effect if there was a failure before
        throw error;
      }
    });
    const upload = new Upload({
      client,
      params: {
        ...(await this.#object(key, signal)),
        ...this.#conditional,
        Body: Readable.from(untilAborted(source, either)),
      },
      partSize: PART_SIZE,
      queueSize: PARTS_AT_ONCE,
    });
    try {
      await upload.done();
    } catch (error) {
      throw stop.signal.aborted ? stop.signal.reason : error; // the first failure, not an echo of it
    }
  }

  async #object(key: string, signal: AbortSignal): Promise<{ Bucket: string; Key: string } & LockHeaders> {
    const lock = await this.#lock.headers(key, signal);
    return { Bucket: this.#connection.bucket, Key: this.#connection.name(key), ...lock };
  }

  /** True once: from then on requests go without the condition. */
  #refusesCondition(error: unknown): boolean {
    const refused = error instanceof AppError && s3ErrorStatus(error.cause) === 501;
    if (!refused || this.#conditional.IfNoneMatch === undefined) return false;
    this.#conditional = {};
    return true;
  }
}

/** The object may be there all the same: the name is taken, perhaps by ourselves, or no answer came. */
function isAmbiguous(error: unknown): boolean {
  if (!(error instanceof AppError)) return false;
  return error.retryable || s3ErrorStatus(error.cause) === 412 || s3ErrorName(error.cause) === "NoSuchUpload";
}

/** A body that remembers what went through. */
class Source implements AsyncIterable<Uint8Array> {
  readonly #body: AsyncIterable<Uint8Array>;
  readonly #hash = createHash("sha256");
  #size = 0;
  #digest: Buffer | undefined;
  /** Why the body itself failed. */
  failed: { readonly reason: unknown } | undefined;

  constructor(body: AsyncIterable<Uint8Array>) {
    this.#body = body;
  }

  get finished(): boolean {
    return this.#digest !== undefined;
  }

  /** Only of a finished one. */
  content(): Content {
    return { size: this.#size, digest: this.#digest! };
  }

  async drain(signal: AbortSignal): Promise<void> {
    const pieces = untilAborted(this, signal);
    while ((await pieces.next()).done !== true);
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array> {
    try {
      for await (const piece of this.#body) {
        this.#hash.update(piece);
        this.#size += piece.length;
        if (piece.length > 0) yield piece;
      }
      this.#digest = this.#hash.digest();
    } catch (error) {
      this.failed = { reason: error };
      throw error;
    }
  }
}
