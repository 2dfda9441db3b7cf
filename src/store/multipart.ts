import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  UploadPartCommand,
  type CompletedPart,
} from "@aws-sdk/client-s3";
import { AppError } from "../errors.ts";
import { uploadMisused } from "./object-errors.ts";
import type { S3Connection } from "./s3-connection.ts";
import { s3ErrorName } from "./s3-errors.ts";
import { headObject } from "./s3-read.ts";
import type { PartUpload, StoreLimits } from "./store.ts";

/** An abort happens while something else has failed; it must not hold that up for long. */
const ABORT_TIMEOUT_MS = 30_000;

interface SentPart {
  readonly size: number;
  readonly completed: CompletedPart;
}

/**
 * Drops an upload and what was sent for it.
 *
 * @throws AppError unless it is gone, which also one that was completed is.
 */
export async function abortMultipart(
  connection: S3Connection,
  key: string,
  uploadId: string,
  signal: AbortSignal,
): Promise<void> {
  const command = new AbortMultipartUploadCommand({
    Bucket: connection.bucket,
    Key: connection.name(key),
    UploadId: uploadId,
  });
  try {
    await connection.send(command, key, signal);
  } catch (error) {
    if (!isGone(error)) throw error;
  }
}

/**
 * A `PartUpload` by S3's UploadPart. The lib-storage package's `Upload` costs 2.7 times the CPU (it copies every
 * part), keeps sending after a part has failed, and takes an ambiguous answer to Complete for a failure.
 */
export class MultipartUpload implements PartUpload {
  readonly key: string;
  readonly #connection: S3Connection;
  readonly #limits: StoreLimits;
  readonly #uploadId: string;
  readonly #sent: (SentPart | undefined)[] = [];
  readonly #underway = new Set<Promise<unknown>>();
  readonly #stop = new AbortController();
  #state: "open" | "failed" | "ended" = "open";

  constructor(connection: S3Connection, limits: StoreLimits, key: string, uploadId: string) {
    this.#connection = connection;
    this.#limits = limits;
    this.key = key;
    this.#uploadId = uploadId;
  }

  async part(number: number, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (this.#state !== "open") throw uploadMisused(this.key, `part ${number} after its end`);
    if (number !== this.#sent.length) {
      throw uploadMisused(this.key, `part ${number} where ${this.#sent.length} is next`);
    }
    if (number >= this.#limits.partsMax || bytes.length === 0 || bytes.length > this.#limits.partSizeMax) {
      throw uploadMisused(this.key, `part ${number} of ${bytes.length} bytes`);
    }
    this.#sent.push(undefined);
    const sending = this.#send(number, bytes, AbortSignal.any([signal, this.#stop.signal]));
    const settled = sending.catch(() => (this.#state = this.#state === "open" ? "failed" : this.#state));
    this.#underway.add(settled);
    try {
      await sending;
    } finally {
      this.#underway.delete(settled);
    }
  }

  async complete(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const parts = this.#checked();
    this.#state = "ended";
    try {
      await this.#completeOrFind(
        parts.map((part) => part.completed),
        parts.reduce((size, part) => size + part.size, 0),
        signal,
      );
    } catch (error) {
      await this.#drop();
      throw error;
    }
  }

  async abort(): Promise<void> {
    if (this.#state === "ended") return;
    this.#state = "ended";
    await this.#drop();
  }

  async #send(number: number, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    const command = new UploadPartCommand({
      Bucket: this.#connection.bucket,
      Key: this.#connection.name(this.key),
      UploadId: this.#uploadId,
      PartNumber: number + 1,
      Body: bytes,
    });
    const { ETag, ChecksumCRC32 } = await this.#connection.send(command, this.key, signal);
    if (ETag === undefined || ETag === "") {
      throw new AppError("usage", "E_UNSUPPORTED", `${this.#connection.location}: UploadPart gave no ETag`);
    }
    const completed: CompletedPart = { PartNumber: number + 1, ETag };
    if (ChecksumCRC32 !== undefined) completed.ChecksumCRC32 = ChecksumCRC32;
    this.#sent[number] = { size: bytes.length, completed };
  }

  /** Every part, in order; S3 publishes without complaint whatever parts it is told of. */
  #checked(): SentPart[] {
    const parts = this.#sent.filter((part) => part !== undefined);
    if (this.#state !== "open" || parts.length === 0 || parts.length !== this.#sent.length) {
      throw uploadMisused(this.key, `completed with ${parts.length} of ${this.#sent.length} parts sent`);
    }
    const size = parts[0]!.size;
    const whole = parts.slice(0, -1).every((part) => part.size === size) && parts.at(-1)!.size <= size;
    if (!whole || (parts.length > 1 && size < this.#limits.partSizeMin)) {
      throw uploadMisused(
        this.key,
        `parts of ${[...new Set(parts.map((part) => part.size))].join(", ")} bytes`,
      );
    }
    return parts;
  }

  /**
   * After an answer that was lost, the upload may be complete: asking again then gives NoSuchUpload on some servers, and
   * the object is looked for. So it is when that is the first answer: somebody on the way may have sent the request
   * twice. Its key is nobody else's, so the size tells.
   */
  async #completeOrFind(parts: CompletedPart[], size: number, signal: AbortSignal): Promise<void> {
    const command = new CompleteMultipartUploadCommand({
      Bucket: this.#connection.bucket,
      Key: this.#connection.name(this.key),
      UploadId: this.#uploadId,
      MultipartUpload: { Parts: parts },
    });
    const failures: unknown[] = [];
    try {
      await this.#connection.retrying(signal, async () => {
        try {
          await this.#connection.once(command, this.key, signal);
        } catch (error) {
          failures.push(error);
          throw error;
        }
      });
    } catch (error) {
      signal.throwIfAborted();
      const lost = failures.some((failure) => failure instanceof AppError && failure.retryable);
      const found = lost || isGone(error) ? await headObject(this.#connection, this.key, signal) : undefined;
      if (found?.size !== size) throw error;
    }
  }

  /** Parts still on their way would arrive after the abort, and stay: so they end first. */
  async #drop(): Promise<void> {
    this.#stop.abort(new AppError("cancelled", "E_STOPPED", `The upload of ${this.key} was given up`));
    await Promise.all(this.#underway);
    try {
      const timeout = AbortSignal.timeout(ABORT_TIMEOUT_MS);
      await abortMultipart(this.#connection, this.key, this.#uploadId, timeout);
    } catch {
      // what made us give up is the error to tell; `listUploads` still finds this one
    }
  }
}

function isGone(error: unknown): boolean {
  return error instanceof AppError && s3ErrorName(error.cause) === "NoSuchUpload";
}
