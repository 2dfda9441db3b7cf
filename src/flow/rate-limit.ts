import { KiB } from "../bytes/size.ts";

/** What may go at once after a pause: so much of a second's bytes. */
const BURST_SECONDS = 0.25;
const BURST_MIN = 64 * KiB;

interface Waiter {
  readonly bytes: number;
  readonly grant: () => void;
}

/**
 * Bytes a second that many tasks share, first come first served (a token bucket).
 *
 * Over any time t at most `rate * t + burst` bytes go, and one piece more, as large as the largest. Who takes small pieces in
 * turn gets an equal share.
 */
export class RateLimit {
  /** Bytes that may go at once, and the piece that it is best to ask for, at most. */
  readonly burst: number;
  readonly #rate: number;
  readonly #waiting: Waiter[] = [];
  /** Below 0 after a piece larger than the burst. */
  #level: number;
  #atMs: number;
  #timer: NodeJS.Timeout | undefined;

  /** @param rate bytes a second, above 0. */
  constructor(rate: number) {
    this.#rate = rate;
    this.burst = Math.max(BURST_MIN, Math.floor(rate * BURST_SECONDS));
    this.#level = this.burst;
    this.#atMs = performance.now();
  }

  /** Waits until so many bytes may go. @throws the signal's reason; then they count as not gone. */
  async take(bytes: number, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    await new Promise<void>((resolve, reject) => {
      const waiter: Waiter = {
        bytes,
        grant: () => {
          signal.removeEventListener("abort", onAbort);
          resolve();
        },
      };
      const onAbort = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(waiter), 1);
        this.#serve(); // the one behind may be first now
        reject(signal.reason);
      };
      signal.addEventListener("abort", onAbort, { once: true });
      this.#waiting.push(waiter);
      this.#serve();
    });
  }

  #serve(): void {
    clearTimeout(this.#timer);
    const now = performance.now();
    this.#level = Math.min(this.burst, this.#level + ((now - this.#atMs) / 1000) * this.#rate);
    this.#atMs = now;
    for (let next = this.#waiting[0]; next !== undefined; next = this.#waiting[0]) {
      const missing = Math.min(next.bytes, this.burst) - this.#level;
      if (missing > 0) {
        this.#timer = setTimeout(() => this.#serve(), Math.ceil((missing / this.#rate) * 1000));
        return;
      }
      this.#level -= next.bytes;
      this.#waiting.shift();
      next.grant();
    }
  }
}
