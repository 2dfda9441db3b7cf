import { AppError } from "../errors.ts";

/**
 * A number of bytes (or anything else countable) that many tasks share, first come first served.
 *
 * Take before you allocate, give back in `finally`.
 */
export class Budget {
  readonly #total: number;
  readonly #waiting: { amount: number; grant: () => void }[] = [];
  #free: number;

  constructor(total: number) {
    this.#total = total;
    this.#free = total;
  }

  /**
   * Waits until `amount` is free.
   *
   * @returns gives the amount back; calling it twice is a no-op.
   * @throws the signal's reason when it is aborted first; AppError E_BUDGET (bug) when the amount is larger
   *   than the whole budget, which would wait for ever.
   */
  async take(amount: number, signal: AbortSignal): Promise<() => void> {
    if (amount > this.#total)
      throw new AppError("bug", "E_BUDGET", `Asked for ${amount} of a budget of ${this.#total}`);
    signal.throwIfAborted();
    if (this.#waiting.length > 0 || amount > this.#free) await this.#wait(amount, signal);
    else this.#free -= amount;
    let given = false;
    return () => {
      if (given) return;
      given = true;
      this.#free += amount;
      this.#serve();
    };
  }

  #wait(amount: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const entry = {
        amount,
        grant: (): void => {
          signal.removeEventListener("abort", onAbort);
          resolve();
        },
      };
      const onAbort = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(entry), 1);
        this.#serve(); // the one behind may fit
        reject(signal.reason);
      };
      signal.addEventListener("abort", onAbort, { once: true });
      this.#waiting.push(entry);
    });
  }

  #serve(): void {
    while (this.#waiting.length > 0 && this.#waiting[0]!.amount <= this.#free) {
      const next = this.#waiting.shift()!;
      this.#free -= next.amount;
      next.grant();
    }
  }
}
