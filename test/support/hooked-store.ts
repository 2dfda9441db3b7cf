import type {
  ObjectInfo,
  ObjectStore,
  PartUpload,
  PendingUpload,
  RequestCounts,
  StoreLimits,
} from "../../src/store/store.ts";
import type { FaultyOperation } from "./faulty-store.ts";

type Hook = (operation: FaultyOperation, key: string) => Promise<void> | void;

export interface StoreHooks {
  /** Before an operation is begun; what it throws is the operation's failure. */
  readonly before?: Hook;
  /** When it has succeeded, before the caller hears of it. */
  readonly after?: Hook;
}

/** A store that tells a test what happens and when, so that it can log, wait or step in at exactly that point. */
export class HookedStore implements ObjectStore {
  readonly location: string;
  readonly limits: StoreLimits;
  readonly #inner: ObjectStore;
  readonly #hooks: StoreHooks;

  constructor(inner: ObjectStore, hooks: StoreHooks) {
    this.#inner = inner;
    this.#hooks = hooks;
    this.location = inner.location;
    this.limits = inner.limits;
  }

  put(key: string, body: Uint8Array, signal: AbortSignal): Promise<void> {
    return this.#run("put", key, () => this.#inner.put(key, body, signal));
  }

  replace(key: string, body: Uint8Array, signal: AbortSignal): Promise<void> {
    return this.#run("replace", key, () => this.#inner.replace(key, body, signal));
  }

  putStream(key: string, body: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<number> {
    return this.#run("putStream", key, () => this.#inner.putStream(key, body, signal));
  }

  async beginUpload(key: string, signal: AbortSignal): Promise<PartUpload> {
    const upload = await this.#run("beginUpload", key, () => this.#inner.beginUpload(key, signal));
    return {
      key,
      part: (number, bytes, partSignal) =>
        this.#run("part", key, () => upload.part(number, bytes, partSignal)),
      complete: (endSignal) => this.#run("complete", key, () => upload.complete(endSignal)),
      abort: () => this.#run("abort", key, () => upload.abort()),
    };
  }

  get(key: string, limit: number, signal: AbortSignal): Promise<Buffer> {
    return this.#run("get", key, () => this.#inner.get(key, limit, signal));
  }

  getRange(key: string, offset: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
    return this.#run("getRange", key, () => this.#inner.getRange(key, offset, into, signal));
  }

  getTail(key: string, length: number, signal: AbortSignal): Promise<{ bytes: Buffer; size: number }> {
    return this.#run("getTail", key, () => this.#inner.getTail(key, length, signal));
  }

  head(key: string, signal: AbortSignal): Promise<ObjectInfo | undefined> {
    return this.#run("head", key, () => this.#inner.head(key, signal));
  }

  async *list(prefix: string, signal: AbortSignal): AsyncGenerator<ObjectInfo> {
    await this.#hooks.before?.("list", prefix);
    yield* this.#inner.list(prefix, signal);
    await this.#hooks.after?.("list", prefix);
  }

  delete(keys: readonly string[], signal: AbortSignal): Promise<void> {
    return this.#run("delete", keys[0] ?? "", () => this.#inner.delete(keys, signal));
  }

  async *listUploads(prefix: string, signal: AbortSignal): AsyncGenerator<PendingUpload> {
    await this.#hooks.before?.("listUploads", prefix);
    yield* this.#inner.listUploads(prefix, signal);
  }

  abortUpload(upload: PendingUpload, signal: AbortSignal): Promise<void> {
    return this.#run("abortUpload", upload.key, () => this.#inner.abortUpload(upload, signal));
  }

  now(signal: AbortSignal): Promise<Date> {
    return this.#run("now", "", () => this.#inner.now(signal));
  }

  requests(): RequestCounts {
    return this.#inner.requests();
  }

  close(): void {
    this.#inner.close();
  }

  async #run<T>(operation: FaultyOperation, key: string, work: () => Promise<T>): Promise<T> {
    await this.#hooks.before?.(operation, key);
    const result = await work();
    await this.#hooks.after?.(operation, key);
    return result;
  }
}
