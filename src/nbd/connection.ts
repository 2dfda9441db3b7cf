import { hasCode, type AppError } from "../errors.ts";
import { Budget } from "../flow/budget.ts";
import { Command, CommandFlag, Errno } from "./constants.ts";
import { Handshake, type Negotiated } from "./handshake.ts";
import { encodeExtendedRequest, encodeRequest, type BlockStatus } from "./messages.ts";
import { Pending, replyError } from "./pending.ts";
import { ReplyReader } from "./replies.ts";
import { lostError, Transport } from "./transport.ts";
import { protocolError } from "./wire.ts";
import type { NbdAddress } from "./uri.ts";

/** How long a server may be silent, in milliseconds. */
export interface NbdTiming {
  /** From the first byte of connecting to the end of the handshake. */
  readonly handshakeMs: number;
  /** While it owes a reply. Storage behind it may be slow, so this is generous. */
  readonly stallMs: number;
}

export const DEFAULT_TIMING: NbdTiming = { handshakeMs: 30_000, stallMs: 300_000 };

/** Requests in flight on one connection; QEMU works on 16 of a connection at once. */
const IN_FLIGHT_MAX = 16;

/**
 * Connects and brings `talk` through the handshake within the deadline.
 *
 * @throws what `talk` throws; AppError E_NBD_LOST (unavailable); the signal's reason.
 */
export async function withHandshake<T>(
  address: NbdAddress,
  timing: NbdTiming,
  signal: AbortSignal,
  talk: (handshake: Handshake, transport: Transport) => Promise<T>,
): Promise<T> {
  const late = AbortSignal.timeout(timing.handshakeMs);
  const either = AbortSignal.any([signal, late]);
  let transport: Transport | undefined;
  const giveUp = (): void => transport?.destroy(either.reason);
  either.addEventListener("abort", giveUp, { once: true });
  let handshake: Handshake | undefined;
  try {
    transport = await Transport.open(address, either);
    handshake = new Handshake(transport, address);
    await handshake.greet(either);
    return await talk(handshake, transport);
  } catch (error) {
    if (hasCode(error, "E_NBD_PROTOCOL")) transport?.destroy(error);
    await handshake?.abort();
    transport?.destroy(error);
    signal.throwIfAborted();
    if (!late.aborted) throw handshake?.encrypted === true ? hintAtCertificate(error) : error;
    throw lostError(
      `NBD server of ${address.uri} did not finish the handshake in ${timing.handshakeMs} ms`,
      error,
    );
  } finally {
    either.removeEventListener("abort", giveUp);
  }
}

function hintAtCertificate(error: unknown): unknown {
  if (!hasCode(error, "E_NBD_LOST")) return error;
  return lostError(`${error.message}; it may not accept the certificate in tls-certificates`, error);
}

/**
 * One connection in the transmission phase: bounded requests in flight, replies matched by cookie in any order.
 * A request's error is that request's alone; anything else ends the connection, for good and with the same reason
 * for everybody.
 */
export class NbdConnection {
  readonly export: Negotiated;
  readonly #address: NbdAddress;
  readonly #transport: Transport;
  readonly #replies: ReplyReader;
  readonly #slots = new Budget(IN_FLIGHT_MAX);
  readonly #waiting = new Map<
    bigint,
    { pending: Pending; settle: (failure?: { reason: unknown }) => void }
  >();
  #cookie = 0n;
  #load = 0;
  #leaving = false;

  constructor(address: NbdAddress, transport: Transport, agreed: Negotiated, timing: NbdTiming) {
    this.export = agreed;
    this.#address = address;
    this.#transport = transport;
    this.#replies = new ReplyReader(transport.receiver, agreed, {
      pendingOf: (cookie) => this.#pendingOf(cookie),
      finished: (cookie) => this.#waiting.get(cookie)?.settle(),
    });
    transport.onFailure = (reason) => {
      for (const { settle } of this.#waiting.values()) settle({ reason });
    };
    transport.watchIdle(timing.stallMs, () => {
      if (this.#waiting.size > 0) {
        transport.destroy(lostError(`NBD server of ${address.uri} owes a reply for ${timing.stallMs} ms`));
      }
    });
  }

  /** False once it can take no more requests. */
  get usable(): boolean {
    return !this.#leaving && this.#transport.failure === undefined;
  }

  /** Requests in flight and those that wait for a place. */
  get load(): number {
    return this.#load;
  }

  /** @param into not empty; the range is aligned and no longer than the export's maximum. */
  async read(offset: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#request(new Pending(Command.READ, offset, into.length, into), 0, undefined, signal);
  }

  /** @param bytes not empty; must not change until the call settles. */
  async write(offset: number, bytes: Uint8Array, flags: number, signal: AbortSignal): Promise<void> {
    await this.#request(new Pending(Command.WRITE, offset, bytes.length), flags, bytes, signal);
  }

  /** WRITE_ZEROES, TRIM (a range) or FLUSH (0, 0). */
  async command(
    command: number,
    offset: number,
    length: number,
    flags: number,
    signal: AbortSignal,
  ): Promise<void> {
    await this.#request(new Pending(command, offset, length), flags, undefined, signal);
  }

  /** The states from `offset` on by context name, each at least one extent; may tell less or more than asked. */
  async blockStatus(
    offset: number,
    length: number,
    signal: AbortSignal,
  ): Promise<ReadonlyMap<string, BlockStatus>> {
    const pending = new Pending(Command.BLOCK_STATUS, offset, length);
    await this.#request(pending, 0, undefined, signal);
    const { contexts } = this.export;
    return new Map([...pending.statuses].map(([id, status]) => [contexts.get(id)!, status]));
  }

  /** Says good-bye; requests still in flight get whatever the server makes of that. */
  async disconnect(): Promise<void> {
    if (!this.usable) return;
    this.#leaving = true;
    this.#transport.send([this.#encode(new Pending(Command.DISC, 0, 0), 0, this.#cookie++)]);
    await this.#transport.end();
  }

  async #request(
    pending: Pending,
    flags: number,
    payload: Uint8Array | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    this.#load++;
    const leave = await this.#slots.take(1, signal).catch((reason: unknown) => {
      this.#load--;
      throw reason;
    });
    const done = (): void => {
      this.#load--;
      leave();
    };
    let failure = this.#transport.failure;
    if (signal.aborted) failure = { reason: signal.reason };
    else if (this.#leaving) failure ??= { reason: this.#leftError() };
    if (failure !== undefined) {
      done();
      throw failure.reason;
    }
    await this.#exchange(pending, flags, payload, signal, done);
    if (pending.error === undefined) return;
    if (pending.error.error !== Errno.ESHUTDOWN) throw replyError(this.#address.uri, pending, pending.error);
    void this.disconnect(); // proto.md, "Terminating the transmission phase": a client MUST
    throw this.#leftError();
  }

  /** Settles with the reply, the connection's end or the abort; `done` is called when the server owes nothing. */
  #exchange(
    pending: Pending,
    flags: number,
    payload: Uint8Array | undefined,
    signal: AbortSignal,
    done: () => void,
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      const cookie = this.#cookie++;
      let payloadInUse = payload !== undefined;
      const onAbort = (): void => {
        pending.abandoned = true;
        reject(signal.reason);
        // The caller gets its buffer back, so nothing of ours may touch it any more.
        if (payloadInUse || this.#replies.isFilling(pending)) this.#transport.destroy(this.#leftError());
      };
      const settle = (failure?: { reason: unknown }): void => {
        this.#waiting.delete(cookie);
        signal.removeEventListener("abort", onAbort);
        done();
        if (failure === undefined) resolve();
        else reject(failure.reason);
      };
      this.#waiting.set(cookie, { pending, settle });
      signal.addEventListener("abort", onAbort, { once: true });
      const header = this.#encode(pending, flags, cookie);
      if (payload === undefined) this.#transport.send([header]);
      else this.#transport.send([header, payload], () => (payloadInUse = false));
    });
  }

  #encode(pending: Pending, flags: number, cookie: bigint): Buffer {
    const { command: type, offset, length } = pending;
    if (!this.export.extended) return encodeRequest({ flags, type, cookie, offset, length });
    const carries = type === Command.WRITE ? CommandFlag.PAYLOAD_LEN : 0;
    return encodeExtendedRequest({ flags: flags | carries, type, cookie, offset, length });
  }

  #pendingOf(cookie: bigint): Pending {
    const found = this.#waiting.get(cookie);
    if (found !== undefined) return found.pending;
    throw protocolError(`NBD server of ${this.#address.uri} answered a request that nobody made`);
  }

  #leftError(): AppError {
    return lostError(`Connection to ${this.#address.uri} is closing`);
  }
}
