import assert from "node:assert/strict";
import { once } from "node:events";
import { AppError } from "../../src/errors.ts";
import type {
  ObjectInfo,
  ObjectStore,
  PartUpload,
  PendingUpload,
  RequestCounts,
  StoreLimits,
} from "../../src/store/store.ts";

/** `part`, `complete` and `abort` are those of an upload begun through the store. */
export type FaultyOperation =
  | "put"
  | "replace"
  | "putStream"
  | "beginUpload"
  | "part"
  | "complete"
  | "abort"
  | "get"
  | "getRange"
  | "getTail"
  | "head"
  | "list"
  | "delete"
  | "listUploads"
  | "abortUpload"
  | "now";

/**
 * What goes wrong, once:
 *
 * - `before`   fails without having done anything
 * - `after`    does it, then fails: the reply was lost
 * - `hang`     never answers; ends only when the call's signal is aborted (`abort()` has none: fails at once)
 * - `corrupt`  of `get`, `getRange` and `getTail`: one bit of what is read is flipped
 * - `truncate` of `get` and `getTail`: half of the bytes are missing; of `getRange`: E_OBJECT_SIZE, as the contract says
 */
export type FaultKind = "before" | "after" | "hang" | "corrupt" | "truncate";

export interface Fault {
  readonly operation: FaultyOperation;
  readonly kind: FaultKind;
  /** Only calls whose key (or prefix) matches; the first of several keys of `delete`. */
  readonly key?: RegExp;
  /** How many matching calls go well before it strikes; 0 unless told. */
  readonly skip?: number;
  /** What is thrown by `before` and `after`; E_STORE (unavailable) unless told. */
  readonly error?: AppError;
  /** Which bit `corrupt` flips; the middle one unless told. */
  readonly bit?: number;
}

/** A store in which planned things go wrong. `assertAllHit()` at the end: a fault nothing ran into tested nothing. */
export class FaultyStore implements ObjectStore {
  readonly location: string;
  readonly limits: StoreLimits;
  readonly #inner: ObjectStore;
  readonly #planned: { fault: Fault; skip: number }[] = [];

  constructor(inner: ObjectStore, ...faults: readonly Fault[]) {
    this.#inner = inner;
    this.location = inner.location;
    this.limits = inner.limits;
    this.plan(...faults);
  }

  plan(...faults: readonly Fault[]): void {
    this.#planned.push(...faults.map((fault) => ({ fault, skip: fault.skip ?? 0 })));
  }

  assertAllHit(): void {
    const left = this.#planned.map(({ fault }) => `${fault.operation} ${fault.kind}`);
    assert.deepEqual(left, [], "planned faults that nothing ran into");
  }

  async put(key: string, body: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#run("put", key, signal, () => this.#inner.put(key, body, signal));
  }

  async replace(key: string, body: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#run("replace", key, signal, () => this.#inner.replace(key, body, signal));
  }

  async putStream(key: string, body: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<number> {
    return this.#run("putStream", key, signal, () => this.#inner.putStream(key, body, signal));
  }

  async beginUpload(key: string, signal: AbortSignal): Promise<PartUpload> {
    const upload = await this.#run("beginUpload", key, signal, () => this.#inner.beginUpload(key, signal));
    const never = new AbortController().signal;
    return {
      key,
      part: (number, bytes, partSignal) =>
        this.#run("part", key, partSignal, () => upload.part(number, bytes, partSignal)),
      complete: (endSignal) => this.#run("complete", key, endSignal, () => upload.complete(endSignal)),
      abort: () => this.#run("abort", key, never, () => upload.abort()),
    };
  }

  async get(key: string, limit: number, signal: AbortSignal): Promise<Buffer> {
    const fault = this.#take("get", key);
    const bytes = await this.#strike(fault, key, signal, () => this.#inner.get(key, limit, signal));
    return damage(bytes, fault);
  }

  async getRange(key: string, offset: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
    const fault = this.#take("getRange", key);
    await this.#strike(fault, key, signal, () => this.#inner.getRange(key, offset, into, signal));
    if (fault?.kind === "truncate") {
      throw new AppError("corrupt", "E_OBJECT_SIZE", `${this.location}: ${key} ends early (planned fault)`);
    }
    damage(into, fault);
  }

  async getTail(key: string, length: number, signal: AbortSignal): Promise<{ bytes: Buffer; size: number }> {
    const fault = this.#take("getTail", key);
    const tail = await this.#strike(fault, key, signal, () => this.#inner.getTail(key, length, signal));
    return { bytes: damage(tail.bytes, fault), size: tail.size };
  }

  async head(key: string, signal: AbortSignal): Promise<ObjectInfo | undefined> {
    return this.#run("head", key, signal, () => this.#inner.head(key, signal));
  }

  async *list(prefix: string, signal: AbortSignal): AsyncGenerator<ObjectInfo> {
    const fault = this.#take("list", prefix);
    await this.#strike(fault?.kind === "after" ? undefined : fault, prefix, signal, () => Promise.resolve());
    yield* this.#inner.list(prefix, signal);
    if (fault?.kind === "after") throw this.#error(fault, prefix);
  }

  async delete(keys: readonly string[], signal: AbortSignal): Promise<void> {
    await this.#run("delete", keys[0] ?? "", signal, () => this.#inner.delete(keys, signal));
  }

  async *listUploads(prefix: string, signal: AbortSignal): AsyncGenerator<PendingUpload> {
    await this.#run("listUploads", prefix, signal, () => Promise.resolve());
    yield* this.#inner.listUploads(prefix, signal);
  }

  async abortUpload(upload: PendingUpload, signal: AbortSignal): Promise<void> {
    await this.#run("abortUpload", upload.key, signal, () => this.#inner.abortUpload(upload, signal));
  }

  async now(signal: AbortSignal): Promise<Date> {
    return this.#run("now", "", signal, () => this.#inner.now(signal));
  }

  requests(): RequestCounts {
    return this.#inner.requests();
  }

  close(): void {
    this.#inner.close();
  }

  async #run<T>(
    operation: FaultyOperation,
    key: string,
    signal: AbortSignal,
    work: () => Promise<T>,
  ): Promise<T> {
    return this.#strike(this.#take(operation, key), key, signal, work);
  }

  /** The first planned fault for this call, which is then used up. */
  #take(operation: FaultyOperation, key: string): Fault | undefined {
    for (const [index, entry] of this.#planned.entries()) {
      if (entry.fault.operation !== operation || entry.fault.key?.test(key) === false) continue;
      if (entry.skip-- > 0) continue;
      this.#planned.splice(index, 1);
      return entry.fault;
    }
    return undefined;
  }

  async #strike<T>(
    fault: Fault | undefined,
    key: string,
    signal: AbortSignal,
    work: () => Promise<T>,
  ): Promise<T> {
    signal.throwIfAborted();
    if (fault?.kind === "before") throw this.#error(fault, key);
    if (fault?.kind === "hang") {
      if (fault.operation === "abort") throw this.#error(fault, key);
      await once(signal, "abort");
      throw signal.reason;
    }
    const result = await work();
    if (fault?.kind === "after") throw this.#error(fault, key);
    return result;
  }

  #error(fault: Fault, key: string): AppError {
    const message = `${this.location}: planned fault in ${fault.operation} of ${key}`;
    return fault.error ?? new AppError("unavailable", "E_STORE", message);
  }
}

/** Flips a bit in place or cuts a copy short, as the fault says. */
function damage<T extends Uint8Array>(bytes: T, fault: Fault | undefined): T {
  if (fault?.kind === "truncate") return bytes.subarray(0, bytes.length >> 1) as T;
  if (fault?.kind !== "corrupt" || bytes.length === 0) return bytes;
  const bit = fault.bit ?? bytes.length * 4;
  bytes[bit >> 3]! ^= 1 << (bit & 7);
  return bytes;
}
