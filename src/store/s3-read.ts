import type { Readable } from "node:stream";
import { GetObjectCommand, HeadObjectCommand, type GetObjectCommandOutput } from "@aws-sdk/client-s3";
import { AppError, hasCode } from "../errors.ts";
import { noObject, wrongSize } from "./object-errors.ts";
import type { S3Connection } from "./s3-connection.ts";
import { s3ErrorName, s3ErrorStatus } from "./s3-errors.ts";
import type { ObjectInfo } from "./store.ts";

/** What is used of an answer, whoever asked. */
type Answer = Pick<GetObjectCommandOutput, "ContentRange"> & { readonly Body?: unknown };

/** A stretch of an object on its way into memory. */
interface Window {
  readonly key: string;
  /** Of the first byte of `into`, in the object. */
  readonly offset: number;
  readonly into: Uint8Array;
  /** Bytes that have arrived. */
  done: number;
}

/** Undefined when there is no such object; of a missing bucket S3's HEAD says the same. */
export async function headObject(
  connection: S3Connection,
  key: string,
  signal: AbortSignal,
): Promise<ObjectInfo | undefined> {
  const command = new HeadObjectCommand({ Bucket: connection.bucket, Key: connection.name(key) });
  try {
    const found = await connection.send(command, key, signal);
    const { ContentLength, LastModified, ObjectLockMode, ObjectLockRetainUntilDate: until } = found;
    const info = { key, size: ContentLength ?? 0, lastModified: LastModified ?? new Date(0) };
    if (ObjectLockMode === undefined || until === undefined) return info;
    return {
      ...info,
      retention: { mode: ObjectLockMode === "COMPLIANCE" ? "compliance" : "governance", until },
    };
  } catch (error) {
    if (error instanceof AppError && s3ErrorStatus(error.cause) === 404) return undefined;
    throw error;
  }
}

/** The object's bytes from `offset` on, straight into the caller's buffer; a broken answer goes on where it stopped. */
export async function readRange(
  connection: S3Connection,
  key: string,
  offset: number,
  into: Uint8Array,
  signal: AbortSignal,
): Promise<void> {
  if (into.length > 0) await fill(connection, { key, offset, into, done: 0 }, signal);
}

/** The whole object. @param limit bytes; a larger one is not read. */
export async function readObject(
  connection: S3Connection,
  key: string,
  limit: number,
  signal: AbortSignal,
): Promise<Buffer> {
  let window: Window | undefined;
  let size = 0;
  await connection.retrying(signal, async () => {
    if (window !== undefined) return fillOnce(connection, window, signal);
    const response = await getObject(connection, key, undefined, signal);
    size = response.ContentLength ?? NaN;
    if (!(size <= limit)) {
      discard(response);
      const found = Number.isNaN(size) ? "has no length" : `has ${size} bytes where at most ${limit} can be`;
      throw wrongSize(connection.location, key, found);
    }
    window = { key, offset: 0, into: Buffer.allocUnsafe(size), done: 0 };
    await take(connection, response, window, signal);
  });
  return window!.into as Buffer;
}

/** The last `length` bytes, or all there are. */
export async function readTail(
  connection: S3Connection,
  key: string,
  length: number,
  signal: AbortSignal,
): Promise<{ bytes: Buffer; size: number }> {
  let window: Window | undefined;
  let size = 0;
  await connection.retrying(signal, async () => {
    if (window !== undefined) return fillOnce(connection, window, signal);
    const response = length === 0 ? undefined : await getTail(connection, key, length, signal);
    const range = response && rangeOf(response);
    if (response === undefined || range === undefined) {
      if (response !== undefined) discard(response);
      size = await sizeWithoutBytes(connection, key, length, signal);
      window = { key, offset: size, into: Buffer.alloc(0), done: 0 };
      return;
    }
    if (range.end !== range.size || range.start !== Math.max(0, range.size - length)) {
      discard(response);
      throw wrongSize(
        connection.location,
        key,
        `gives ${response.ContentRange} for its last ${length} bytes`,
      );
    }
    size = range.size;
    window = { key, offset: range.start, into: Buffer.allocUnsafe(range.end - range.start), done: 0 };
    await take(connection, response, window, signal);
  });
  return { bytes: window!.into as Buffer, size };
}

/** Undefined when the server says that there is no such range, as of an empty object. */
async function getTail(
  connection: S3Connection,
  key: string,
  length: number,
  signal: AbortSignal,
): Promise<GetObjectCommandOutput | undefined> {
  try {
    return await getObject(connection, key, `bytes=-${length}`, signal);
  } catch (error) {
    if (hasCode(error, "E_OBJECT_SIZE")) return undefined;
    throw error;
  }
}

/** HTTP has no range for the end of an empty object, nor for none of its bytes: its size is asked for. */
async function sizeWithoutBytes(
  connection: S3Connection,
  key: string,
  length: number,
  signal: AbortSignal,
): Promise<number> {
  const found = await headObject(connection, key, signal);
  if (found === undefined) throw noObject(connection.location, key);
  if (length > 0 && found.size > 0) {
    throw wrongSize(connection.location, key, `has ${found.size} bytes, but none of the last ${length}`);
  }
  return found.size;
}

async function fill(connection: S3Connection, window: Window, signal: AbortSignal): Promise<void> {
  await connection.retrying(signal, () => fillOnce(connection, window, signal));
}

async function fillOnce(connection: S3Connection, window: Window, signal: AbortSignal): Promise<void> {
  if (window.done === window.into.length) return; // only the end of the answer was lost
  const start = window.offset + window.done;
  const end = window.offset + window.into.length;
  const asked = `bytes=${start}-${end - 1}`;
  const response =
    (await connection.getDirectly(window.key, asked, signal)) ??
    (await getObject(connection, window.key, asked, signal));
  const range = rangeOf(response);
  if (range?.start !== start || range.end !== end) {
    discard(response);
    const ends = range?.start === start && range.end < end;
    const why = ends
      ? `ends at ${range.end}, before ${end}`
      : `gives ${response.ContentRange} for ${start}-${end - 1}`;
    throw wrongSize(connection.location, window.key, why);
  }
  await take(connection, response, window, signal);
}

async function getObject(
  connection: S3Connection,
  key: string,
  range: string | undefined,
  signal: AbortSignal,
): Promise<GetObjectCommandOutput> {
  const object = { Bucket: connection.bucket, Key: connection.name(key) };
  const command = new GetObjectCommand(range === undefined ? object : { ...object, Range: range });
  try {
    const answer = await connection.once(command, key, signal);
    connection.learnFrom(key);
    return answer;
  } catch (error) {
    if (!(error instanceof AppError)) throw error;
    const status = s3ErrorStatus(error.cause);
    if (status === 416) throw wrongSize(connection.location, key, `ends before ${range}`);
    if (status === 404 && s3ErrorName(error.cause) !== "NoSuchBucket") {
      throw noObject(connection.location, key, error.cause);
    }
    throw error;
  }
}

/**
 * Moves the answer's body into the window; what has arrived counts even when the rest does not come. An abort
 * destroys the body: the SDK's handler watches the signal until the request is closed.
 */
async function take(
  connection: S3Connection,
  response: Answer,
  window: Window,
  signal: AbortSignal,
): Promise<void> {
  const body = response.Body as Readable;
  try {
    for await (const piece of body as AsyncIterable<Buffer>) {
      if (window.done + piece.length > window.into.length) {
        throw wrongSize(connection.location, window.key, "came with more bytes than were asked for");
      }
      window.into.set(piece, window.done);
      window.done += piece.length;
      await connection.allowance.download?.take(piece.length, signal);
    }
    if (window.done < window.into.length) throw endedEarly();
  } catch (error) {
    body.destroy();
    signal.throwIfAborted();
    throw connection.failure(error, "GetObject", window.key);
  }
}

/** As Node says it when a body of known length is cut. */
function endedEarly(): Error {
  return Object.assign(new Error("the answer ended early"), { code: "ECONNRESET" });
}

function discard(response: Answer): void {
  (response.Body as Readable | undefined)?.destroy();
}

/** Content-Range "bytes 0-9/20": the end is exclusive here. */
function rangeOf(response: Answer): { start: number; end: number; size: number } | undefined {
  const match = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(response.ContentRange ?? "");
  return match === null
    ? undefined
    : { start: Number(match[1]), end: Number(match[2]) + 1, size: Number(match[3]) };
}
