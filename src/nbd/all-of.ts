/**
 * Runs `work` over all items at once and settles when every call has: buffers are free again then. The first
 * failure stops the others and is the one thrown.
 */
export async function allOf<T>(
  items: readonly T[],
  signal: AbortSignal,
  work: (item: T, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const [only] = items;
  if (only === undefined) return;
  if (items.length === 1) return work(only, signal);
  const stop = new AbortController();
  const either = AbortSignal.any([signal, stop.signal]);
  await Promise.allSettled(
    items.map((item) => work(item, either).catch((error: unknown) => stop.abort(error))),
  );
  if (stop.signal.aborted) throw stop.signal.reason;
}
