import { expect, test } from "vitest";
import { AppError } from "../../../src/errors.ts";
import { RequestBudget } from "../../../src/store/allowance.ts";
import { LimitedStore } from "../../../src/store/limited-store.ts";
import { failure } from "../../support/outcomes.ts";
import { diskOf, expectSame, newBackups, numbers } from "./chunks.ts";

/** What a stopped run may still send to put things in order: the lease, the index, the record of its end. */
const IN_ORDER_MAX = 16;

test("a run whose requests are spent ends with that, commits nothing, and leaves what it stored to the next", async () => {
  const backups = await newBackups();
  const { store } = backups;
  const contents = numbers(1, 101);
  const sum = (): number => Object.values(store.requests()).reduce((all, count) => all + count, 0);
  for (const max of [1, 3, 5, 8, 13, 21, 34, 55]) {
    const budget = new RequestBudget(max);
    const run = new AbortController();
    budget.spent.addEventListener("abort", () => run.abort(budget.spent.reason));
    const before = sum();
    const limited = new LimitedStore(store, { requests: budget });
    const error = await failure(backups.backup([diskOf(contents)], { run, store: limited }));
    expect(error).toMatchObject({ code: "E_REQUESTS_SPENT", kind: "full", retryable: false });
    expect((error as AppError).message).toContain(`The ${max} requests that were allowed are spent`);
    expect(sum() - before).toBeLessThanOrEqual(max + IN_ORDER_MAX);
    expect(await backups.generations()).toEqual([]);
    expect(store.uploads.size).toBe(0);
  }
  const disk = diskOf(contents);
  const { manifest, stats } = await backups.backup([disk]);
  expect(stats.chunksDeduplicated).toBeGreaterThan(20);
  expect(stats.chunksStored).toBeLessThan(80);
  expectSame(await backups.restore(manifest.disks[0]!), disk.bytes);
});

test("a budget that is enough changes nothing", async () => {
  const backups = await newBackups();
  const budget = new RequestBudget(1000);
  const limited = new LimitedStore(backups.repository.store, { requests: budget });
  const { stats } = await backups.backup([diskOf([1, 2, 3])], { store: limited });
  expect(stats.chunksStored).toBe(3);
  expect(budget.spent.aborted).toBe(false);
});
