import type { Allowance } from "./allowance.ts";
import type {
  ObjectInfo,
  ObjectStore,
  PartUpload,
  PendingUpload,
  RequestCounts,
  StoreLimits,
} from "./store.ts";

/**
 * A store that keeps to an allowance, for stores that have no requests of their own to slow down: each call counts as one
 * request, and its bytes go at once when their time has come.
 */
export class LimitedStore implements ObjectStore {
  readonly location: string;
  readonly limits: StoreLimits;
  readonly #inner: ObjectStore;
  readonly #allowance: Allowance;

  /** Closing this closes `inner`. */
  constructor(inner: ObjectStore, allowance: Allowance) {
    this.#inner = inner;
    this.#allowance = allowance;
    this.location = inner.location;
    this.limits = inner.limits;
  }

  async put(key: string, body: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#send(body.length, signal);
    await this.#inner.put(key, body, signal);
  }

  async replace(key: string, body: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#send(body.length, signal);
    await this.#inner.replace(key, body, signal);
  }

  async putStream(key: string, body: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<number> {
    await this.#send(0, signal);
    return await this.#inner.putStream(key, this.#paced(body, signal), signal);
  }

  async beginUpload(key: string, signal: AbortSignal): Promise<PartUpload> {
    await this.#send(0, signal);
    const upload = await this.#inner.beginUpload(key, signal);
    return {
      key,
      part: async (number, bytes, partSignal) => {
        await this.#send(bytes.length, partSignal);
        await upload.part(number, bytes, partSignal);
      },
      complete: async (endSignal) => {
        await this.#send(0, endSignal);
        await upload.complete(endSignal);
      },
      abort: () => upload.abort(),
    };
  }

  async get(key: string, limit: number, signal: AbortSignal): Promise<Buffer> {
    await this.#send(0, signal);
    const bytes = await this.#inner.get(key, limit, signal);
    await this.#received(bytes.length, signal);
    return bytes;
  }

  async getRange(key: string, offset: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#send(0, signal);
    await this.#received(into.length, signal);
    await this.#inner.getRange(key, offset, into, signal);
  }

  async getTail(key: string, length: number, signal: AbortSignal): Promise<{ bytes: Buffer; size: number }> {
    await this.#send(0, signal);
    const tail = await this.#inner.getTail(key, length, signal);
    await this.#received(tail.bytes.length, signal);
    return tail;
  }

  async head(key: string, signal: AbortSignal): Promise<ObjectInfo | undefined> {
    await this.#send(0, signal);
    return await this.#inner.head(key, signal);
  }

  async *list(prefix: string, signal: AbortSignal): AsyncGenerator<ObjectInfo> {
    await this.#send(0, signal);
    yield* this.#inner.list(prefix, signal);
  }

  async delete(keys: readonly string[], signal: AbortSignal): Promise<void> {
    await this.#send(0, signal);
    await this.#inner.delete(keys, signal);
  }

  async *listUploads(prefix: string, signal: AbortSignal): AsyncGenerator<PendingUpload> {
    await this.#send(0, signal);
    yield* this.#inner.listUploads(prefix, signal);
  }

  async abortUpload(upload: PendingUpload, signal: AbortSignal): Promise<void> {
    await this.#send(0, signal);
    await this.#inner.abortUpload(upload, signal);
  }

  async now(signal: AbortSignal): Promise<Date> {
    return await this.#inner.now(signal); // a clock is no request that anybody counts
  }

  requests(): RequestCounts {
    return this.#inner.requests();
  }

  close(): void {
    this.#inner.close();
  }

  async #send(bytes: number, signal: AbortSignal): Promise<void> {
    this.#allowance.requests?.spend(signal);
    if (bytes > 0) await this.#allowance.upload?.take(bytes, signal);
  }

  async #received(bytes: number, signal: AbortSignal): Promise<void> {
    if (bytes > 0) await this.#allowance.download?.take(bytes, signal);
  }

  async *#paced(body: AsyncIterable<Uint8Array>, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    for await (const piece of body) {
      await this.#allowance.upload?.take(piece.length, signal);
      yield piece;
    }
  }
}
