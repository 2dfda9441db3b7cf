import { AppError, hasCode, messageOf } from "../errors.ts";
import { pause } from "../flow/retry.ts";
import type { Runner } from "../jobs/job.ts";
import type { JobObserver } from "../jobs/observer.ts";
import type { JobFile } from "../jobs/schema.ts";
import { parseBackupOrder, type BackupOrder } from "../queue/orders.ts";
import type { Message, WorkQueue } from "../queue/queue.ts";
import { fulfil, waitBeforeNext, type Fulfilment } from "./fulfil.ts";

/** How long a message that was received stays hidden at first: it is soon there again when we end in that moment. */
const TAKEN_SECONDS = 60;

/** While a run goes on, its message is hidden for so long, again and again; a host that dies holds it no longer. */
const HELD_SECONDS = 600;

/** What ending a message may take, milliseconds. */
const SETTLE_MS = 30_000;

/** Between two tries of a queue that does not answer, milliseconds. */
const TROUBLE_MS = 1000;
const TROUBLE_MAX_MS = 60_000;

/** Who hears of an agent's work. Nothing here may throw. */
export interface AgentListener extends JobObserver {
  /** It listens; what keeps it from that, it says next. */
  ready(): void;
  began(order: BackupOrder): void;
  ended(order: BackupOrder, result: Fulfilment): void;
  /** A message that is no order; it comes again, and in the end goes where failures go. */
  refused(message: Pick<Message, "id">, error: unknown): void;
  /** The queue does not answer, and from then on until it does (undefined). */
  queue(trouble: unknown): void;
}

export interface AgentOptions {
  readonly queue: WorkQueue;
  readonly file: JobFile;
  readonly runner: Runner;
  /** Runs at once. */
  readonly concurrency: number;
  /** How long runs may go on once it is told to stop, milliseconds. */
  readonly drainMs: number;
  readonly listener: AgentListener;
  /** Only tests want other times. */
  readonly takenSeconds?: number;
  readonly heldSeconds?: number;
}

/**
 * Takes orders from a queue and does them, a bounded number at once.
 *
 * A message ends when its work is done, or was done before. Otherwise it comes again later, here or elsewhere; the queue
 * sends what fails too often to where failures go. An agent that dies lets its messages come again by themselves.
 */
export class Agent {
  readonly #options: AgentOptions;
  /** Of all runs; they outlive the order to stop. */
  readonly #runs = new AbortController();
  #trouble: unknown;

  constructor(options: AgentOptions) {
    this.#options = options;
  }

  /**
   * Works until `stop`; resolves when every run has ended, and its message with it.
   * @throws AppError when the queue is not there or does not let us in, right at the start.
   */
  async run(stop: AbortSignal): Promise<void> {
    const { queue, concurrency, drainMs, listener } = this.#options;
    let trouble: unknown;
    try {
      await queue.waiting(stop);
    } catch (error) {
      if (stop.aborted) return;
      if (!(error instanceof AppError) || !error.retryable) throw error;
      trouble = error;
    }
    listener.ready();
    this.#noteTrouble(trouble);
    let drained: NodeJS.Timeout | undefined;
    const drain = (): void => {
      const reason = new AppError("cancelled", "E_DRAINED", "The agent stops, and the run took too long");
      drained = setTimeout(() => this.#runs.abort(reason), drainMs);
    };
    stop.addEventListener("abort", drain, { once: true });
    if (stop.aborted) drain();
    try {
      await Promise.all(Array.from({ length: concurrency }, () => this.#take(stop)));
    } finally {
      stop.removeEventListener("abort", drain);
      clearTimeout(drained);
    }
  }

  /** One message after the other. */
  async #take(stop: AbortSignal): Promise<void> {
    const { queue, takenSeconds } = this.#options;
    for (let failures = 0; !stop.aborted;) {
      try {
        const message = await queue.receive(takenSeconds ?? TAKEN_SECONDS, stop);
        failures = 0;
        this.#noteTrouble(undefined);
        if (message !== undefined) await this.#handle(message);
      } catch (error) {
        if (error === stop.reason) return;
        this.#noteTrouble(error);
        const waitMs = Math.min(TROUBLE_MS * 2 ** failures++, TROUBLE_MAX_MS);
        await pause(waitMs, stop).catch(() => undefined);
      }
    }
  }

  async #handle(message: Message): Promise<void> {
    const { file, runner, listener } = this.#options;
    const over = new AbortController();
    const holding = this.#hold(message, over.signal);
    let ended = false;
    try {
      const order = this.#orderOf(message);
      if (order !== undefined) {
        listener.began(order);
        const result = await fulfil(order, file, runner, { signal: this.#runs.signal, observer: listener });
        listener.ended(order, result);
        ended = result.kind === "done" || result.kind === "already";
      }
    } finally {
      over.abort();
      await holding;
    }
    await this.#settle(message, ended);
  }

  #orderOf(message: Message): BackupOrder | undefined {
    try {
      return parseBackupOrder(message.body);
    } catch (error) {
      this.#options.listener.refused(message, error);
      return undefined;
    }
  }

  /** Hides a message from others as long as its run goes on. Losing it is no reason to stop: the lease keeps others away. */
  async #hold(message: Message, over: AbortSignal): Promise<void> {
    const { queue, listener, takenSeconds = TAKEN_SECONDS, heldSeconds = HELD_SECONDS } = this.#options;
    let waitMs = (takenSeconds * 1000) / 3;
    for (;;) {
      try {
        await pause(waitMs, over);
        waitMs = (heldSeconds * 1000) / 3;
        await queue.hide(message, heldSeconds, over);
      } catch (error) {
        if (over.aborted) return;
        listener.warn(`Message ${message.id} cannot be kept from others: ${messageOf(error)}`);
        if (hasCode(error, "E_MESSAGE_LOST")) return;
      }
    }
  }

  /** What cannot be settled comes again by itself, and does no harm then. */
  async #settle(message: Message, ended: boolean): Promise<void> {
    const { queue, listener } = this.#options;
    const signal = AbortSignal.timeout(SETTLE_MS);
    const wait = this.#runs.signal.aborted ? 0 : waitBeforeNext(message.receives);
    try {
      if (ended) await queue.delete(message, signal);
      else await queue.hide(message, wait, signal);
    } catch (error) {
      listener.warn(`Message ${message.id} comes again, because it could not be ended: ${messageOf(error)}`);
    }
  }

  #noteTrouble(error: unknown): void {
    if ((error === undefined) === (this.#trouble === undefined)) return;
    this.#trouble = error;
    this.#options.listener.queue(error);
  }
}
