import {
  CreateMultipartUploadCommand,
  DeleteObjectsCommand,
  ListMultipartUploadsCommand,
  ListObjectsV2Command,
  PutObjectCommand,
} from "@aws-sdk/client-s3";
import { GiB, MiB } from "../bytes/size.ts";
import { AppError } from "../errors.ts";
import { checkKey, checkPrefix } from "./key.ts";
import type { S3Location } from "./location.ts";
import { abortMultipart, MultipartUpload } from "./multipart.ts";
import type { LockingStore, LockRule } from "./object-lock.ts";
import { S3Connection, type S3Options } from "./s3-connection.ts";
import { S3Creator } from "./s3-create.ts";
import { S3Lock } from "./s3-lock.ts";
import { headObject, readObject, readRange, readTail } from "./s3-read.ts";
import type {
  ObjectInfo,
  PartUpload,
  PendingUpload,
  RequestCounts,
  Retention,
  StoreLimits,
} from "./store.ts";

/** "Multipart upload limits" of the S3 user guide. */
const LIMITS: StoreLimits = { partSizeMin: 5 * MiB, partSizeMax: 5 * GiB, partsMax: 10_000 };
/** Most keys one DeleteObjects takes. */
const DELETE_BATCH = 1000;

/** Objects in a bucket of an S3-compatible server. */
export class S3Store implements LockingStore {
  readonly location: string;
  readonly limits = LIMITS;
  readonly #connection: S3Connection;
  readonly #lock: S3Lock;
  readonly #creator: S3Creator;

  private constructor(connection: S3Connection, lock: S3Lock) {
    this.#connection = connection;
    this.#lock = lock;
    this.#creator = new S3Creator(connection, lock);
    this.location = connection.location;
  }

  static open(location: S3Location, options: S3Options = {}): S3Store {
    const connection = new S3Connection(location, options);
    return new S3Store(connection, new S3Lock(connection));
  }

  /** Shares the connection: closing either closes both. */
  withLocks(rule: LockRule): S3Store {
    return new S3Store(this.#connection, new S3Lock(this.#connection, rule));
  }

  async checkObjectLock(signal: AbortSignal): Promise<void> {
    await this.#lock.check(signal);
  }

  async extendRetention(key: string, retention: Retention, signal: AbortSignal): Promise<void> {
    checkKey(key);
    await this.#lock.extend(key, retention, signal);
  }

  async put(key: string, body: Uint8Array, signal: AbortSignal): Promise<void> {
    checkKey(key);
    await this.#creator.put(key, body, signal);
  }

  async replace(key: string, body: Uint8Array, signal: AbortSignal): Promise<void> {
    checkKey(key);
    await this.#connection.send(new PutObjectCommand({ ...this.#object(key), Body: body }), key, signal);
  }

  async putStream(key: string, body: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<number> {
    checkKey(key);
    return this.#creator.putStream(key, body, signal);
  }

  async beginUpload(key: string, signal: AbortSignal): Promise<PartUpload> {
    checkKey(key);
    const lock = await this.#lock.headers(key, signal);
    const command = new CreateMultipartUploadCommand({ ...this.#object(key), ...lock });
    const { UploadId } = await this.#connection.send(command, key, signal);
    if (UploadId === undefined) throw this.#strange("CreateMultipartUpload gave no UploadId");
    return new MultipartUpload(this.#connection, LIMITS, key, UploadId);
  }

  async get(key: string, limit: number, signal: AbortSignal): Promise<Buffer> {
    checkKey(key);
    return readObject(this.#connection, key, limit, signal);
  }

  async getRange(key: string, offset: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
    checkKey(key);
    await readRange(this.#connection, key, offset, into, signal);
  }

  async getTail(key: string, length: number, signal: AbortSignal): Promise<{ bytes: Buffer; size: number }> {
    checkKey(key);
    return readTail(this.#connection, key, length, signal);
  }

  async head(key: string, signal: AbortSignal): Promise<ObjectInfo | undefined> {
    checkKey(key);
    return headObject(this.#connection, key, signal);
  }

  async *list(prefix: string, signal: AbortSignal): AsyncGenerator<ObjectInfo> {
    checkPrefix(prefix);
    let token: string | undefined;
    do {
      const page = await this.#connection.send(
        new ListObjectsV2Command({
          Bucket: this.#connection.bucket,
          Prefix: this.#connection.name(prefix),
          ...(token === undefined ? {} : { ContinuationToken: token }),
        }),
        prefix,
        signal,
      );
      for (const { Key, Size, LastModified } of page.Contents ?? []) {
        const key = this.#keyOf(Key);
        // "folders" that other tools make as empty objects are not ours
        if (key.endsWith("/") || key === "") continue;
        yield { key, size: Size ?? 0, lastModified: LastModified ?? new Date(0) };
      }
      token = page.IsTruncated === true ? page.NextContinuationToken : undefined;
      if (page.IsTruncated === true && token === undefined)
        throw this.#strange("ListObjectsV2 stops in the middle");
    } while (token !== undefined);
  }

  async delete(keys: readonly string[], signal: AbortSignal): Promise<void> {
    keys.forEach(checkKey);
    for (let start = 0; start < keys.length; start += DELETE_BATCH) {
      const batch = keys.slice(start, start + DELETE_BATCH);
      await this.#connection.retrying(signal, () => this.#deleteBatch(batch, signal));
    }
  }

  async *listUploads(prefix: string, signal: AbortSignal): AsyncGenerator<PendingUpload> {
    checkPrefix(prefix);
    let marker: { KeyMarker: string; UploadIdMarker: string } | undefined;
    do {
      const page = await this.#connection.send(
        new ListMultipartUploadsCommand({
          Bucket: this.#connection.bucket,
          Prefix: this.#connection.name(prefix),
          ...marker,
        }),
        prefix,
        signal,
      );
      for (const { Key, UploadId, Initiated } of page.Uploads ?? []) {
        yield { key: this.#keyOf(Key), uploadId: UploadId ?? "", initiated: Initiated ?? new Date(0) };
      }
      const { IsTruncated, NextKeyMarker, NextUploadIdMarker } = page;
      marker =
        IsTruncated === true
          ? { KeyMarker: NextKeyMarker ?? "", UploadIdMarker: NextUploadIdMarker ?? "" }
          : undefined;
      if (marker?.KeyMarker === "") throw this.#strange("ListMultipartUploads stops in the middle");
    } while (marker !== undefined);
  }

  async abortUpload(upload: PendingUpload, signal: AbortSignal): Promise<void> {
    await abortMultipart(this.#connection, upload.key, upload.uploadId, signal);
  }

  async now(signal: AbortSignal): Promise<Date> {
    return this.#connection.now(signal);
  }

  requests(): RequestCounts {
    return this.#connection.requests();
  }

  close(): void {
    this.#connection.close();
  }

  #object(key: string): { Bucket: string; Key: string } {
    return { Bucket: this.#connection.bucket, Key: this.#connection.name(key) };
  }

  /** One that fails for some keys still answers 200. */
  async #deleteBatch(keys: readonly string[], signal: AbortSignal): Promise<void> {
    const command = new DeleteObjectsCommand({
      Bucket: this.#connection.bucket,
      Delete: { Objects: keys.map((key) => ({ Key: this.#connection.name(key) })), Quiet: true },
    });
    const { Errors = [] } = await this.#connection.once(command, keys[0], signal);
    const failed = Errors.find(({ Code }) => Code !== "NoSuchKey");
    if (failed === undefined) return;
    const status = failed.Code === "AccessDenied" ? 403 : 500;
    const error = Object.assign(new Error(failed.Message), {
      name: failed.Code,
      $metadata: { httpStatusCode: status },
    });
    throw this.#connection.failure(error, "DeleteObjects", this.#keyOf(failed.Key));
  }

  /** The key below our prefix. @throws AppError when the server lists what was not asked for. */
  #keyOf(name: string | undefined): string {
    const { prefix } = this.#connection;
    if (name?.startsWith(prefix) !== true) throw this.#strange(`a listing of ${prefix} has ${name}`);
    return name.slice(prefix.length);
  }

  #strange(what: string): AppError {
    return new AppError(
      "usage",
      "E_UNSUPPORTED",
      `${this.location}: ${what}; this is no S3 server we can use`,
    );
  }
}
