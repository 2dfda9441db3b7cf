import { AppError, hasCode } from "../errors.ts";
import { retry, type RetryPolicy } from "../flow/retry.ts";
import { DEFAULT_TIMING, NbdConnection, withHandshake, type NbdTiming } from "./connection.ts";
import { Context, ExportFlag } from "./constants.ts";
import type { Handshake, Negotiated } from "./handshake.ts";
import { lostError } from "./transport.ts";
import type { NbdAddress } from "./uri.ts";

export interface PoolOptions {
  /** Metadata contexts to select where the server has them. */
  readonly contexts: readonly string[];
  /** One of `contexts` without which there is no point. */
  readonly required?: string;
  /** Most connections; one when the server does not let several see the same disk. */
  readonly connections: number;
  readonly retry: RetryPolicy;
  readonly timing?: NbdTiming;
}

/**
 * One export over one or more connections. A lost connection costs nothing but time: requests that had no reply
 * are made again on another, which is opened when none is left, with backoff.
 */
export class NbdPool {
  /** As first negotiated; a server that comes back with anything else is refused. */
  readonly export: Negotiated;
  readonly #address: NbdAddress;
  readonly #options: PoolOptions;
  readonly #closing = new AbortController();
  #live: NbdConnection[];
  #reconnecting: Promise<void> | undefined;
  #growing: Promise<void> = Promise.resolve();
  #coming = 0;
  #outages = 0;

  private constructor(address: NbdAddress, options: PoolOptions, first: NbdConnection) {
    this.export = first.export;
    this.#address = address;
    this.#options = options;
    this.#live = [first];
    this.#grow();
  }

  /**
   * @throws AppError E_NBD_CONNECT (source) at once when nobody answers; E_NBD_BITMAP, E_NBD_EXPORT (notFound);
   *   E_NBD_TLS…, E_NBD_REFUSED, E_NBD_PROTOCOL.
   */
  static async open(address: NbdAddress, options: PoolOptions, signal: AbortSignal): Promise<NbdPool> {
    try {
      return new NbdPool(address, options, await openConnection(address, options, signal));
    } catch (error) {
      if (!hasCode(error, "E_NBD_LOST")) throw error;
      throw new AppError("source", "E_NBD_CONNECT", error.message, { uri: address.uri }, error);
    }
  }

  /** How many times no connection was left: what the server did in between, nobody knows. */
  get outages(): number {
    return this.#outages;
  }

  /**
   * Runs a request on the least busy connection, and again on another when that one is lost.
   *
   * @param work must do no harm when it is done twice.
   * @throws AppError E_NBD_GONE (source) when the server stays away; E_NBD_CHANGED; what `work` throws.
   */
  async run<T>(signal: AbortSignal, work: (connection: NbdConnection) => Promise<T>): Promise<T> {
    try {
      return await retry(this.#options.retry, signal, async () =>
        work(this.#leastBusy() ?? (await this.#reconnected(signal))),
      );
    } catch (error) {
      if (!hasCode(error, "E_NBD_LOST") || signal.aborted) throw error;
      throw new AppError(
        "source",
        "E_NBD_GONE",
        `NBD server of ${this.#address.uri} went away and did not come back: ${error.message}`,
        { uri: this.#address.uri },
        error,
      );
    }
  }

  /** Leaves politely; requests still under way fail. Safe to call twice. */
  async close(): Promise<void> {
    this.#closing.abort(new AppError("cancelled", "E_NBD_CLOSED", `${this.#address.uri} was closed`));
    await Promise.allSettled([this.#growing, this.#reconnecting]);
    await Promise.all(this.#live.map((connection) => connection.disconnect()));
  }

  /** Not async: calls made in one turn must see each other's load. @returns undefined when all are lost. */
  #leastBusy(): NbdConnection | undefined {
    this.#closing.signal.throwIfAborted();
    const before = this.#live.length;
    this.#live = this.#live.filter((connection) => connection.usable);
    const [first, ...others] = this.#live;
    if (first !== undefined && this.#live.length < before) this.#grow();
    return others.reduce((best, each) => (each.load < (best?.load ?? 0) ? each : best), first);
  }

  async #reconnected(signal: AbortSignal): Promise<NbdConnection> {
    this.#reconnecting ??= this.#reconnect().finally(() => (this.#reconnecting = undefined));
    await unlessAborted(this.#reconnecting, signal);
    const connection = this.#leastBusy();
    if (connection === undefined) throw lostError(`Connection to ${this.#address.uri} was lost at once`);
    return connection;
  }

  /** One attempt; the callers' own retries bound the number of attempts. */
  async #reconnect(): Promise<void> {
    const connection = await this.#openAgain();
    const [was, is] = [describe(this.export), describe(connection.export)];
    if (was !== is) {
      await connection.disconnect();
      throw new AppError(
        "source",
        "E_NBD_CHANGED",
        `NBD server of ${this.#address.uri} came back with another export: ${is}; it was ${was}`,
      );
    }
    this.#outages++;
    this.#live.push(connection);
    this.#grow();
  }

  /** The keys were right the first time, so a TLS handshake that fails now was cut off like any connection. */
  async #openAgain(): Promise<NbdConnection> {
    try {
      return await openConnection(this.#address, this.#options, this.#closing.signal);
    } catch (error) {
      throw hasCode(error, "E_NBD_TLS") ? lostError(error.message, error) : error;
    }
  }

  /**
   * Opens the other connections behind the requests' back. A server may limit its clients, so one that cannot be
   * had is done without.
   */
  #grow(): void {
    const multi = (this.export.flags & ExportFlag.CAN_MULTI_CONN) !== 0;
    const missing = multi ? this.#options.connections - this.#live.length - this.#coming : 0;
    const opened = Array.from({ length: Math.max(0, missing) }, async () => {
      this.#coming++;
      const opening = openConnection(this.#address, this.#options, this.#closing.signal);
      const connection = await opening.finally(() => this.#coming--);
      const same = describe(connection.export) === describe(this.export);
      if (same && !this.#closing.signal.aborted) this.#live.push(connection);
      else await connection.disconnect();
    });
    this.#growing = Promise.allSettled([this.#growing, ...opened]).then(() => undefined);
  }
}

async function openConnection(
  address: NbdAddress,
  options: PoolOptions,
  signal: AbortSignal,
): Promise<NbdConnection> {
  const timing = options.timing ?? DEFAULT_TIMING;
  return withHandshake(address, timing, signal, async (handshake, transport) => {
    await handshake.negotiateReplies();
    const selected = await handshake.selectContexts(options.contexts);
    if (options.required !== undefined && !selected.includes(options.required)) {
      throw await missingContext(address, options.required, handshake);
    }
    return new NbdConnection(address, transport, await handshake.go(), timing);
  });
}

async function missingContext(address: NbdAddress, wanted: string, handshake: Handshake): Promise<AppError> {
  const offered = await handshake.listContexts();
  const prefix = Context.DIRTY_BITMAP;
  const bitmaps = offered
    .filter((name) => name.startsWith(prefix))
    .map((name) => name.slice(prefix.length))
    .sort();
  const what = bitmaps.length === 0 ? "and none else" : `but ${bitmaps.join(", ")}`;
  return new AppError(
    "notFound",
    "E_NBD_BITMAP",
    `NBD export ${address.uri} offers no bitmap "${wanted.slice(prefix.length)}" ${what}`,
  );
}

/** What must not change while the export is in use. */
function describe(agreed: Negotiated): string {
  const { minimum, maximum } = agreed.blockSize;
  const contexts = [...agreed.contexts.values()].sort().join(" ");
  return `${agreed.size} bytes, flags 0x${agreed.flags.toString(16)}, blocks ${minimum} to ${maximum}, contexts [${contexts}]`;
}

/** The promise's outcome, or the signal's reason as soon as it is aborted. */
async function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted();
  let onAbort = (): void => undefined;
  const aborted = new Promise<never>((_resolve, reject) => {
    onAbort = () => reject(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
