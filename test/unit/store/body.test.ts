import { getEventListeners } from "node:events";
import { expect, test } from "vitest";
import { orAborted, untilAborted } from "../../../src/store/body.ts";
import { all, failure } from "../../support/outcomes.ts";

async function* numbers(count: number, ended?: () => void): AsyncGenerator<number> {
  try {
    for (let number = 0; number < count; number++) yield await Promise.resolve(number);
  } finally {
    ended?.();
  }
}

test("passes everything on", async () => {
  expect(await all(untilAborted(numbers(5), new AbortController().signal))).toEqual([0, 1, 2, 3, 4]);
});

test("an abort ends a source that hangs, with the reason", async () => {
  const run = new AbortController();
  const hanging: AsyncIterable<number> = {
    [Symbol.asyncIterator]: () => ({ next: () => new Promise(() => {}) }),
  };
  const reading = failure(all(untilAborted(hanging, run.signal)));
  run.abort(new Error("enough"));
  expect(await reading).toBe(run.signal.reason);
});

test("a source's error comes out", async () => {
  const broken: AsyncIterable<number> = {
    [Symbol.asyncIterator]: () => ({ next: () => Promise.reject(new Error("broken")) }),
  };
  expect(await failure(all(untilAborted(broken, new AbortController().signal)))).toEqual(new Error("broken"));
});

test("a consumer that stops early ends the source", async () => {
  let ended = false;
  for await (const number of untilAborted(
    numbers(5, () => (ended = true)),
    new AbortController().signal,
  )) {
    if (number === 2) break;
  }
  await Promise.resolve();
  expect(ended).toBe(true);
});

test("leaves no listener on a signal that lives long", async () => {
  const { signal } = new AbortController();
  await all(untilAborted(numbers(3), signal));
  expect(getEventListeners(signal, "abort")).toHaveLength(0);
});

test("work that hangs is left alone by an abort, also by one that came before", async () => {
  const aborted = AbortSignal.abort(new Error("enough"));
  expect(await failure(orAborted(new Promise(() => {}), aborted))).toBe(aborted.reason);
  expect(await orAborted(Promise.resolve(7), new AbortController().signal)).toBe(7);
});
