/**
 * Lets callers who want the same thing at the same time share one call.
 *
 * Each caller has a signal of its own and leaves when it is aborted; the call itself is aborted when the last
 * one left.
 */
export class SharedCalls<T> {
  readonly #underWay = new Map<string, SharedCall<T>>();

  /**
   * Joins the call under way for `key`, or starts one.
   * @throws what the call throws, or the caller's own reason once its signal is aborted.
   */
  async join(key: string, signal: AbortSignal, start: (signal: AbortSignal) => Promise<T>): Promise<T> {
    signal.throwIfAborted();
    let call = this.#underWay.get(key);
    if (call === undefined) {
      const begun = new SharedCall(start, () => {
        if (this.#underWay.get(key) === begun) this.#underWay.delete(key);
      });
      call = begun;
      this.#underWay.set(key, begun);
    }
    return call.wait(signal);
  }
}

class SharedCall<T> {
  readonly #result: Promise<T>;
  readonly #stop = new AbortController();
  readonly #onEnd: () => void;
  #waiting = 0;

  /** @param onEnd called once nobody may join any more; more than once is possible. */
  constructor(start: (signal: AbortSignal) => Promise<T>, onEnd: () => void) {
    this.#onEnd = onEnd;
    this.#result = start(this.#stop.signal).finally(onEnd);
  }

  async wait(signal: AbortSignal): Promise<T> {
    const aborted = Promise.withResolvers<never>();
    const onAbort = (): void => {
      this.#waiting--;
      if (this.#waiting === 0) {
        this.#onEnd();
        this.#stop.abort(signal.reason);
      }
      aborted.reject(signal.reason);
    };
    signal.addEventListener("abort", onAbort, { once: true });
    this.#waiting++;
    try {
      return await Promise.race([this.#result, aborted.promise]);
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }
}
