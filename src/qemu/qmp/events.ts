import { AppError } from "../../errors.ts";

/** Something that happened in QEMU, as it told us. */
export interface QmpEvent {
  readonly event: string;
  readonly data: Readonly<Record<string, unknown>>;
  /** Milliseconds since 1970 by the host's clock. */
  readonly timestamp: number;
}

/** Most events that wait in one listener, and their length as sent, in bytes. */
export const EVENTS_MAX = 1000;
export const EVENT_BYTES_MAX = 4 * 1024 * 1024;

interface Waiter {
  wanted(event: QmpEvent): boolean;
  resolve(event: QmpEvent): void;
  reject(reason: unknown): void;
}

/**
 * Keeps the events of some names, in their order, from the moment it is opened. Open it before the command whose
 * events are awaited: they come before its answer.
 *
 * What nobody takes stays, so whoever listens for long takes everything. When more than a bound waits, the listener
 * fails for good: an event was lost, and it may have been the one that matters.
 */
export class QmpListener {
  readonly #names: ReadonlySet<string>;
  readonly #left: (listener: QmpListener) => void;
  #queue: { readonly event: QmpEvent; readonly bytes: number }[] = [];
  #bytes = 0;
  readonly #waiters = new Set<Waiter>();
  #failure: { readonly reason: unknown } | undefined;

  /** @param left told when it listens no more. */
  constructor(names: readonly string[], left: (listener: QmpListener) => void) {
    this.#names = new Set(names);
    this.#left = left;
  }

  /**
   * The first event that `wanted` accepts, those received already included; it is taken out, the others stay.
   *
   * @throws AppError E_QMP_GONE when the connection is over and no such event came before, E_QMP_EVENTS (source) when
   *   events were lost, E_QMP_NOT_LISTENING (cancelled) after `close`; the signal's reason.
   */
  async next(wanted: (event: QmpEvent) => boolean, signal: AbortSignal): Promise<QmpEvent> {
    signal.throwIfAborted();
    const found = this.#queue.findIndex(({ event }) => wanted(event));
    if (found >= 0) {
      const [taken] = this.#queue.splice(found, 1);
      this.#bytes -= taken!.bytes;
      return taken!.event;
    }
    if (this.#failure !== undefined) throw this.#failure.reason;
    return this.#wait(wanted, signal);
  }

  /** Listens no more; those who still wait are told so. Safe to call twice. */
  close(): void {
    this.#queue = [];
    this.fail(new AppError("cancelled", "E_QMP_NOT_LISTENING", "Nobody listens for QEMU's events any more"));
  }

  /** @param bytes its length as sent. */
  offer(event: QmpEvent, bytes: number): void {
    if (this.#failure !== undefined || !this.#names.has(event.event)) return;
    for (const waiter of this.#waiters) {
      if (!waiter.wanted(event)) continue;
      waiter.resolve(event);
      return;
    }
    this.#bytes += bytes;
    this.#queue.push({ event, bytes });
    if (this.#queue.length <= EVENTS_MAX && this.#bytes <= EVENT_BYTES_MAX) return;
    this.#queue = [];
    const names = [...this.#names].join(", ");
    this.fail(
      new AppError("source", "E_QMP_EVENTS", `QEMU sends more events than can be kept (${names})`, { names }),
    );
  }

  /** No more events come, for this reason. What came before can still be taken. */
  fail(reason: unknown): void {
    if (this.#failure !== undefined) return;
    this.#failure = { reason };
    for (const waiter of this.#waiters) waiter.reject(reason);
    this.#left(this);
  }

  #wait(wanted: (event: QmpEvent) => boolean, signal: AbortSignal): Promise<QmpEvent> {
    return new Promise((resolve, reject) => {
      const leave = (): void => {
        this.#waiters.delete(waiter);
        signal.removeEventListener("abort", onAbort);
      };
      const waiter: Waiter = {
        wanted,
        resolve: (event) => {
          leave();
          resolve(event);
        },
        reject: (reason) => {
          leave();
          reject(reason);
        },
      };
      const onAbort = (): void => waiter.reject(signal.reason);
      signal.addEventListener("abort", onAbort, { once: true });
      this.#waiters.add(waiter);
    });
  }
}
