import { once } from "node:events";

/**
 * The items of `source`; an abort ends it at once with the signal's reason, also while it waits for a source that
 * does not know the signal.
 */
export async function* untilAborted<T>(source: AsyncIterable<T>, signal: AbortSignal): AsyncGenerator<T> {
  const iterator = source[Symbol.asyncIterator]();
  const stop = new AbortController();
  const aborted = once(signal, "abort", { signal: stop.signal }).then(
    () => "aborted" as const,
    () => "stopped" as const,
  );
  let finished = false;
  try {
    while (true) {
      signal.throwIfAborted();
      const next = await Promise.race([iterator.next(), aborted]);
      if (typeof next === "string") throw signal.reason;
      if (next.done === true) {
        finished = true;
        return;
      }
      yield next.value;
    }
  } finally {
    stop.abort();
    // not waited for: a source that hangs would never answer
    if (!finished) void Promise.resolve(iterator.return?.()).catch(() => {});
  }
}

/** A body of one piece. */
export async function* only(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield await Promise.resolve(bytes);
}
