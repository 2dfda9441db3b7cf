/**
 * A signal for work that many wait for: aborted when every one of theirs is, with the last one's reason.
 *
 * @param signals at least one; the listeners left on them go with the signals.
 */
export function whenAllAborted(signals: readonly AbortSignal[]): AbortSignal {
  const all = new AbortController();
  let left = signals.length;
  for (const signal of signals) {
    const leave = (): void => {
      left--;
      if (left === 0) all.abort(signal.reason);
    };
    if (signal.aborted) leave();
    else signal.addEventListener("abort", leave, { once: true });
  }
  return all.signal;
}
