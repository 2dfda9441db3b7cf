import { AppError, hasCode } from "../../errors.ts";
import { Budget } from "../../flow/budget.ts";
import { Command, CommandFlag, DEFAULT_BLOCK_SIZE } from "../constants.ts";
import {
  decodeExtendedRequest,
  decodeRequest,
  EXTENDED_REQUEST_SIZE,
  REQUEST_SIZE,
  type Request,
} from "../messages.ts";
import { protocolError } from "../wire.ts";
import { blockStatus, readParts } from "./answers.ts";
import { failureOf } from "./errno.ts";
import type { Agreement } from "./handshake.ts";
import type { Peer } from "./peer.ts";
import { encodeReply, type Answer, type Recipient } from "./replies.ts";
import { payloadOf, refuse, type Terms } from "./rules.ts";
import { SpareBuffers } from "./spare-buffers.ts";

/** What one connection may hold on to. */
export interface TransmissionLimits {
  /** Requests being worked on or answered; with more, the client waits. */
  readonly requestsMax: number;
  /** Bytes of payload in memory; at least one request of the largest size always fits. */
  readonly bytesMax: number;
}

/** Most extents for one context in one reply; the client asks on from there. */
const STATUS_EXTENTS = 32 * 1024;
/** Memory for that many, in the making and encoded. */
const STATUS_BYTES = STATUS_EXTENTS * 32;
/** More payload than this behind a request is not even read away (proto.md, "Size constraints"). */
const PAYLOAD_MAX = DEFAULT_BLOCK_SIZE.maximum;

/**
 * The transmission phase of one connection: requests are taken in order, carried out many at once, and answered
 * as they finish.
 */
export class Transmission {
  readonly #peer: Peer;
  readonly #agreement: Agreement;
  readonly #terms: Terms;
  readonly #slots: Budget;
  readonly #bytes: Budget;
  readonly #spare = new SpareBuffers();
  readonly #gone: AbortController;
  readonly #signal: AbortSignal;
  readonly #onDiskError: (error: unknown) => void;
  readonly #inFlight = new Set<Promise<void>>();

  /**
   * @param gone aborted when answers no longer have a reader: by the owner, or here when the client just leaves.
   * @param onDiskError gets what the disk threw; the client has been told.
   */
  constructor(
    peer: Peer,
    agreement: Agreement,
    limits: TransmissionLimits,
    gone: AbortController,
    onDiskError: (error: unknown) => void,
  ) {
    const { disk, flags, style, contexts } = agreement;
    this.#peer = peer;
    this.#agreement = agreement;
    this.#terms = { size: disk.size, blockSize: disk.blockSize, flags, style, contexts };
    this.#slots = new Budget(limits.requestsMax);
    const largest = Math.max(disk.blockSize.maximum, STATUS_BYTES * contexts.length);
    this.#bytes = new Budget(Math.max(limits.bytesMax, largest));
    this.#gone = gone;
    this.#signal = gone.signal;
    this.#onDiskError = onDiskError;
  }

  /**
   * Serves until the client disconnects or breaks the protocol, or the peer or signal fails. When it settles,
   * no request is under way any more.
   *
   * @throws why it ended; nothing when the client asked for it.
   */
  async run(): Promise<void> {
    try {
      while (await this.#takeRequest());
    } catch (error) {
      // Without DISC nobody waits for answers any more (proto.md, "Terminating the transmission phase").
      if (hasCode(error, "E_NBD_CLIENT_LEFT")) this.#gone.abort(error);
      throw error;
    } finally {
      await Promise.all(this.#inFlight);
    }
  }

  /** @returns false after DISC. */
  async #takeRequest(): Promise<boolean> {
    const extended = this.#agreement.style === "extended";
    const head = await this.#peer.read(extended ? EXTENDED_REQUEST_SIZE : REQUEST_SIZE);
    const request = extended ? decodeExtendedRequest(head) : decodeRequest(head);
    if (request.type === Command.DISC) return false;
    const recipient = { cookie: request.cookie, rawOffset: Buffer.from(head.subarray(16, 24)) };
    const payloadSize = payloadOf(request, this.#agreement.style);
    if (payloadSize > Math.max(PAYLOAD_MAX, this.#terms.blockSize.maximum)) {
      throw protocolError(`NBD client announced a payload of ${payloadSize} bytes`);
    }
    const giveSlot = await this.#slots.take(1, this.#signal);
    const refusal = refuse(request, this.#terms);
    if (refusal !== undefined) {
      await this.#peer.skip(payloadSize);
      this.#start(async () => await this.#send(recipient, { type: "failure", ...refusal }), giveSlot);
      return true;
    }
    const giveBytes = await this.#bytes.take(this.#weightOf(request), this.#signal);
    const payload = this.#spare.take(payloadSize);
    await this.#peer.readInto(payload);
    this.#start(
      async () => {
        const answer = await this.#answer(request, payload);
        this.#spare.give(payload);
        await this.#send(recipient, answer);
      },
      giveSlot,
      giveBytes,
    );
    return true;
  }

  /** Runs one request; what it took is given back when its answer is out. */
  #start(work: () => Promise<void>, ...giveBack: readonly (() => void)[]): void {
    const running = work()
      .catch((error: unknown) => {
        // Only sending fails here, or the codec: either way this client cannot be answered.
        this.#peer.fail(error instanceof Error ? error : new AppError("bug", "E_NBD_REPLY", String(error)));
      })
      .finally(() => {
        for (const give of giveBack) give();
        this.#inFlight.delete(running);
      });
    this.#inFlight.add(running);
  }

  async #send(to: Recipient, answer: Answer): Promise<void> {
    try {
      await this.#peer.send(...encodeReply(this.#agreement.style, to, answer));
    } finally {
      if (answer.type === "data") answer.release();
    }
  }

  async #answer(request: Request, payload: Buffer): Promise<Answer> {
    try {
      return await this.#carryOut(request, payload);
    } catch (error) {
      if (!this.#signal.aborted) this.#onDiskError(error);
      return { type: "failure", ...failureOf(error) };
    }
  }

  async #carryOut(request: Request, payload: Buffer): Promise<Answer> {
    const { disk, style, contexts } = this.#agreement;
    const { type, flags, offset, length } = request;
    const signal = this.#signal;
    switch (type) {
      case Command.READ: {
        const whole = style === "simple" || (flags & CommandFlag.DF) !== 0;
        return { type: "data", ...(await readParts(disk, { offset, length }, whole, this.#spare, signal)) };
      }
      case Command.BLOCK_STATUS: {
        const most = (flags & CommandFlag.REQ_ONE) === 0 ? STATUS_EXTENTS : 1;
        const ask = contexts.map((context) => blockStatus(disk, context, { offset, length }, most, signal));
        return { type: "status", statuses: await Promise.all(ask) };
      }
      case Command.WRITE:
        if (length > 0) await disk.write?.(offset, payload, signal);
        break;
      case Command.TRIM:
        if (length > 0) await disk.zero?.(offset, length, true, signal);
        break;
      case Command.WRITE_ZEROES:
        if (length > 0) await disk.zero?.(offset, length, (flags & CommandFlag.NO_HOLE) === 0, signal);
        break;
      default: // FLUSH: `refuse` lets nothing else through
    }
    if (type === Command.FLUSH || (flags & CommandFlag.FUA) !== 0) await disk.flush?.(signal);
    return { type: "done" };
  }

  /** Bytes that a request keeps in memory until it is answered. */
  #weightOf(request: Request): number {
    switch (request.type) {
      case Command.READ:
      case Command.WRITE:
        return request.length;
      case Command.BLOCK_STATUS:
        return STATUS_BYTES * this.#agreement.contexts.length;
      default:
        return 0;
    }
  }
}
