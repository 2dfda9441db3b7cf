/** Blocks that somebody is working on. */
interface Held {
  readonly first: number;
  readonly end: number;
  readonly over: Promise<void>;
}

/** Keeps those apart who change where the same blocks are to be read. */
export class HeldBlocks {
  readonly #held = new Set<Held>();

  /**
   * Waits until nobody holds any of the blocks `first` to `end` - 1, then begins `work`, in the same moment.
   *
   * @throws the signal's reason when it is aborted first; what `work` throws.
   */
  async after<T>(first: number, end: number, signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    signal.throwIfAborted();
    for (let other; (other = this.#holder(first, end)) !== undefined;) await settled(other.over, signal);
    return await work();
  }

  /** As `after`, and holds the blocks while `work` runs. */
  async during<T>(first: number, end: number, signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    return await this.after(first, end, signal, async () => {
      const { promise, resolve } = Promise.withResolvers<undefined>();
      const held: Held = { first, end, over: promise };
      this.#held.add(held);
      try {
        return await work();
      } finally {
        this.#held.delete(held);
        resolve(undefined);
      }
    });
  }

  #holder(first: number, end: number): Held | undefined {
    for (const held of this.#held) if (held.first < end && first < held.end) return held;
    return undefined;
  }
}

/** Waits for what never fails, no longer than until the signal is aborted. */
async function settled(over: Promise<void>, signal: AbortSignal): Promise<void> {
  const aborted = Promise.withResolvers<never>();
  const onAbort = (): void => aborted.reject(signal.reason);
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    await Promise.race([over, aborted.promise]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
