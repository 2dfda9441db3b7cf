import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { AppError } from "../../../src/errors.ts";
import { mapOrdered } from "../../../src/flow/map-ordered.ts";

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

test("keeps the order whatever finishes first, and never runs more than the limit", async () => {
  let running = 0;
  let most = 0;
  const run = new AbortController();
  const results = await collect(
    mapOrdered([5, 1, 4, 2, 3, 0], 3, run, async (item) => {
      most = Math.max(most, ++running);
      await sleep(item);
      running--;
      return item * 10;
    }),
  );
  expect(results).toEqual([50, 10, 40, 20, 30, 0]);
  expect(most).toBe(3);
  expect(run.signal.aborted).toBe(false);
});

test("throws the first failure, not the echo of its abort, and leaves nothing running", async () => {
  const run = new AbortController();
  let running = 0;
  const work = async (item: number, signal: AbortSignal): Promise<number> => {
    running++;
    try {
      await sleep(item === 2 ? 1 : 10_000, undefined, { signal });
      throw new Error("the cause");
    } finally {
      running--;
    }
  };
  await expect(collect(mapOrdered([1, 2, 3], 3, run, work))).rejects.toThrow("the cause");
  expect(running).toBe(0);
  expect(run.signal.reason).toHaveProperty("message", "the cause");
});

test("a failure of a later stage is the one reported, though the earlier stage stops because of it", async () => {
  const run = new AbortController();
  const first = mapOrdered([1, 2, 3, 4], 2, run, async (item, signal) => {
    await sleep(1, undefined, { signal });
    return item;
  });
  const second = mapOrdered(first, 1, run, (item) =>
    item === 2 ? Promise.reject(new Error("stage two")) : Promise.resolve(item),
  );
  await expect(collect(second)).rejects.toThrow("stage two");
});

test("an error of the source ends the run with that error", async () => {
  const run = new AbortController();
  function* source(): Generator<number> {
    yield 1;
    throw new Error("the source broke");
  }
  await expect(collect(mapOrdered(source(), 2, run, (item) => Promise.resolve(item)))).rejects.toThrow(
    "the source broke",
  );
});

test("a consumer that stops early stops the work", async () => {
  const run = new AbortController();
  let settled = 0;
  for await (const item of mapOrdered([1, 2, 3, 4], 4, run, async (value, signal) => {
    await sleep(value === 1 ? 0 : 10_000, undefined, { signal }).finally(() => settled++);
    return value;
  })) {
    expect(item).toBe(1);
    break;
  }
  expect(settled).toBe(4);
  expect(run.signal.reason).toBeInstanceOf(AppError);
});
