import { AppError } from "../errors.ts";

/**
 * Runs `work` over `source` with up to `limit` calls at once and yields the results in the source's order.
 *
 * The run's first failure, wherever it comes from, stops every stage and is the one thrown here, not an echo of
 * it. When this generator settles, none of its work is still running.
 *
 * @param limit most calls started and not yet handed on, >= 1.
 * @param run one for the whole run, shared by every stage.
 */
export async function* mapOrdered<In, Out>(
  source: AsyncIterable<In> | Iterable<In>,
  limit: number,
  run: AbortController,
  work: (item: In, signal: AbortSignal) => Promise<Out>,
): AsyncGenerator<Out, void, undefined> {
  const inFlight: Promise<Out>[] = [];
  let finished = false;
  try {
    for await (const item of source) {
      run.signal.throwIfAborted();
      const result = work(item, run.signal);
      result.catch((reason: unknown) => run.abort(reason)); // also: never an unhandled rejection
      inFlight.push(result);
      if (inFlight.length >= limit) yield await (inFlight.shift() as Promise<Out>);
    }
    while (inFlight.length > 0) yield await (inFlight.shift() as Promise<Out>);
    finished = true;
  } catch (reason) {
    run.abort(reason); // no effect if an earlier failure already did
    throw run.signal.reason;
  } finally {
    if (!finished) run.abort(new AppError("cancelled", "E_STOPPED", "The next stage stopped early"));
    await Promise.allSettled(inFlight);
  }
}

/** Runs a pipeline to its end when nobody wants its results. */
export async function drain(items: AsyncIterable<unknown>): Promise<void> {
  const iterator = items[Symbol.asyncIterator]();
  while ((await iterator.next()).done !== true);
}
