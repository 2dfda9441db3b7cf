import { AppError } from "../../src/errors.ts";
import { checkKey, checkPrefix } from "../../src/store/key.ts";
import type {
  ObjectInfo,
  ObjectStore,
  PartUpload,
  PendingUpload,
  RequestCounts,
  StoreLimits,
} from "../../src/store/store.ts";

export interface MemoryStoreOptions {
  /** The store's clock, milliseconds since 1970. */
  readonly now?: () => number;
  readonly limits?: StoreLimits;
  /** As if the bucket were not there. */
  readonly missing?: boolean;
}

interface Stored {
  readonly bytes: Buffer;
  readonly lastModified: Date;
}

interface Pending extends PendingUpload {
  readonly parts: Map<number, Buffer>;
  spoiled: boolean;
}

/** An object store in memory, held to the same contract as the real ones. Tests may look into it and damage it. */
export class MemoryStore implements ObjectStore {
  readonly location = "memory";
  readonly limits: StoreLimits;
  readonly objects = new Map<string, Stored>();
  readonly uploads = new Map<string, Pending>();
  readonly #now: () => number;
  readonly #missing: boolean;
  readonly #requests: Record<string, number> = {};
  #uploadCount = 0;

  constructor(options: MemoryStoreOptions = {}) {
    this.#now = options.now ?? Date.now;
    this.#missing = options.missing ?? false;
    this.limits = options.limits ?? { partSizeMin: 1, partSizeMax: 1024 ** 3, partsMax: 10_000 };
  }

  async put(key: string, body: Uint8Array, signal: AbortSignal): Promise<void> {
    checkKey(key);
    await this.#request("PutObject", signal);
    this.#create(key, Buffer.from(body));
  }

  async replace(key: string, body: Uint8Array, signal: AbortSignal): Promise<void> {
    checkKey(key);
    await this.#request("PutObject", signal);
    this.#set(key, Buffer.from(body));
  }

  async putStream(key: string, body: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<number> {
    checkKey(key);
    signal.throwIfAborted();
    const pieces: Buffer[] = [];
    for await (const piece of untilAborted(body, signal)) pieces.push(Buffer.from(piece));
    await this.#request("PutObject", signal);
    const bytes = Buffer.concat(pieces);
    this.#create(key, bytes);
    return bytes.length;
  }

  async beginUpload(key: string, signal: AbortSignal): Promise<PartUpload> {
    checkKey(key);
    await this.#request("CreateMultipartUpload", signal);
    const uploadId = String(++this.#uploadCount);
    const pending: Pending = {
      key,
      uploadId,
      initiated: new Date(this.#now()),
      parts: new Map(),
      spoiled: false,
    };
    this.uploads.set(uploadId, pending);
    return {
      key,
      part: async (number, bytes, partSignal): Promise<void> => {
        try {
          await this.#request("UploadPart", partSignal);
          this.#addPart(uploadId, number, Buffer.from(bytes));
        } catch (error) {
          pending.spoiled = true;
          throw error;
        }
      },
      complete: async (completeSignal): Promise<void> => {
        await this.#request("CompleteMultipartUpload", completeSignal);
        this.#create(key, this.#joined(uploadId));
        this.uploads.delete(uploadId);
      },
      abort: async (): Promise<void> => {
        await this.#request("AbortMultipartUpload", new AbortController().signal);
        this.uploads.delete(uploadId);
      },
    };
  }

  async get(key: string, limit: number, signal: AbortSignal): Promise<Buffer> {
    checkKey(key);
    await this.#request("GetObject", signal);
    const { bytes } = this.#stored(key);
    if (bytes.length > limit)
      throw sizeError(key, `is ${bytes.length} bytes long, ${limit} at most were expected`);
    return Buffer.from(bytes);
  }

  async getRange(key: string, offset: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
    checkKey(key);
    await this.#request("GetObject", signal);
    const { bytes } = this.#stored(key);
    const end = offset + into.length;
    if (bytes.length < end) throw sizeError(key, `is ${bytes.length} bytes long, ${end} were expected`);
    into.set(bytes.subarray(offset, end));
  }

  async getTail(key: string, length: number, signal: AbortSignal): Promise<{ bytes: Buffer; size: number }> {
    checkKey(key);
    await this.#request("GetObject", signal);
    const { bytes } = this.#stored(key);
    return { bytes: Buffer.from(bytes.subarray(Math.max(0, bytes.length - length))), size: bytes.length };
  }

  async head(key: string, signal: AbortSignal): Promise<ObjectInfo | undefined> {
    checkKey(key);
    await this.#request("HeadObject", signal);
    return this.objects.has(key) ? this.#info(key) : undefined;
  }

  async *list(prefix: string, signal: AbortSignal): AsyncIterable<ObjectInfo> {
    checkPrefix(prefix);
    await this.#request("ListObjectsV2", signal);
    const keys = [...this.objects.keys()].filter((key) => key.startsWith(prefix));
    const page = keys.sort(byBytes).map((key) => this.#info(key));
    for (const info of page) {
      signal.throwIfAborted();
      yield info;
    }
  }

  async delete(keys: readonly string[], signal: AbortSignal): Promise<void> {
    await this.#request("DeleteObjects", signal);
    for (const key of keys) this.objects.delete(key);
  }

  async *listUploads(prefix: string, signal: AbortSignal): AsyncIterable<PendingUpload> {
    await this.#request("ListMultipartUploads", signal);
    for (const { key, uploadId, initiated } of [...this.uploads.values()]) {
      signal.throwIfAborted();
      if (key.startsWith(prefix)) yield { key, uploadId, initiated };
    }
  }

  async abortUpload(upload: PendingUpload, signal: AbortSignal): Promise<void> {
    await this.#request("AbortMultipartUpload", signal);
    this.uploads.delete(upload.uploadId);
  }

  async now(signal: AbortSignal): Promise<Date> {
    await this.#request("HeadBucket", signal);
    return new Date(this.#now());
  }

  requests(): RequestCounts {
    return { ...this.#requests };
  }

  close(): void {
    // nothing is held open; what was stored stays for the test to look at
  }

  /** The bytes of an object, for tests; changing them changes what is stored. */
  bytes(key: string): Buffer {
    return this.#stored(key).bytes;
  }

  /** Lets go of the thread, as a request would; an abort ends it before anything is changed. */
  async #request(operation: string, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    this.#requests[operation] = (this.#requests[operation] ?? 0) + 1;
    await new Promise((resolve) => setImmediate(resolve));
    signal.throwIfAborted();
    if (this.#missing) throw new AppError("notFound", "E_NO_BUCKET", "There is no such memory");
  }

  #create(key: string, bytes: Buffer): void {
    const there = this.objects.get(key);
    if (there?.bytes.equals(bytes)) return;
    if (there !== undefined)
      throw new AppError("locked", "E_EXISTS", `The object ${key} in memory exists already`, { key });
    this.#set(key, bytes);
  }

  #set(key: string, bytes: Buffer): void {
    this.objects.set(key, { bytes, lastModified: new Date(this.#now()) });
  }

  #stored(key: string): Stored {
    const stored = this.objects.get(key);
    if (stored === undefined)
      throw new AppError("notFound", "E_NO_OBJECT", `There is no object ${key} in memory`, { key });
    return stored;
  }

  #info(key: string): ObjectInfo {
    const { bytes, lastModified } = this.#stored(key);
    return { key, size: bytes.length, lastModified };
  }

  #pending(uploadId: string): Pending {
    const pending = this.uploads.get(uploadId);
    if (pending === undefined)
      throw new AppError("unavailable", "E_STORE", "The upload is gone", { uploadId });
    if (pending.spoiled) throw misused(pending.key, "a part of it failed");
    return pending;
  }

  #addPart(uploadId: string, number: number, bytes: Buffer): void {
    const { key, parts } = this.#pending(uploadId);
    if (bytes.length === 0 || parts.has(number)) throw misused(key, `part ${number} is empty or comes twice`);
    parts.set(number, bytes);
  }

  #joined(uploadId: string): Buffer {
    const { key, parts } = this.#pending(uploadId);
    const inOrder = Array.from({ length: parts.size }, (_, number) => parts.get(number) ?? Buffer.alloc(0));
    const size = inOrder[0]?.length ?? 0;
    const last = inOrder.at(-1)?.length ?? 0;
    const equal = inOrder
      .slice(0, -1)
      .every((part) => part.length === size && size >= this.limits.partSizeMin);
    if (last === 0 || last > size || !equal) throw misused(key, "its parts have gaps or differ in size");
    return Buffer.concat(inOrder);
  }
}

function misused(key: string, what: string): AppError {
  return new AppError("bug", "E_UPLOAD", `Upload of ${key} in memory: ${what}`, { key });
}

/** Ends between two pieces, and while one is waited for, once the signal is aborted. */
async function* untilAborted(
  body: AsyncIterable<Uint8Array>,
  signal: AbortSignal,
): AsyncIterable<Uint8Array> {
  const aborted = Promise.withResolvers<never>();
  aborted.promise.catch(() => undefined);
  const onAbort = (): void => aborted.reject(signal.reason);
  signal.addEventListener("abort", onAbort, { once: true });
  const iterator = body[Symbol.asyncIterator]();
  try {
    for (;;) {
      const next = await Promise.race([iterator.next(), aborted.promise]);
      if (next.done === true) return;
      yield next.value;
    }
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}

function byBytes(left: string, right: string): number {
  return Buffer.compare(Buffer.from(left), Buffer.from(right));
}

function sizeError(key: string, why: string): AppError {
  return new AppError("corrupt", "E_OBJECT_SIZE", `The object ${key} in memory ${why}`, { key });
}
