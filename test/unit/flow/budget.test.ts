import { expect, test } from "vitest";
import { Budget } from "../../../src/flow/budget.ts";
import { retry } from "../../../src/flow/retry.ts";
import { AppError } from "../../../src/errors.ts";

const never = new AbortController().signal;

test("grants in order and never more than there is", async () => {
  const budget = new Budget(10);
  const order: string[] = [];
  const first = await budget.take(7, never);
  const second = budget.take(6, never).then((give) => (order.push("second"), give));
  const third = budget.take(1, never).then((give) => (order.push("third"), give));
  await Promise.resolve();
  expect(order).toEqual([]); // the third would fit, but it came later
  first();
  first(); // giving back twice is no gift
  (await second)();
  (await third)();
  expect(order).toEqual(["second", "third"]);
  (await budget.take(10, never))();
});

test("an abort ends the wait with its reason and lets the next one through", async () => {
  const budget = new Budget(4);
  const held = await budget.take(3, never);
  const stop = new AbortController();
  const large = budget.take(4, stop.signal);
  const small = budget.take(1, never);
  stop.abort(new Error("enough"));
  await expect(large).rejects.toThrow("enough");
  (await small)();
  held();
});

test("more than the whole is a bug, not a wait for ever", async () => {
  await expect(new Budget(4).take(5, never)).rejects.toMatchObject({ code: "E_BUDGET" });
});

const FAST = { attemptsMax: 3, baseMs: 1, waitMaxMs: 1, budgetMs: 1000 };
const flaky = new AppError("unavailable", "E_STORE", "later");

test("retries what is worth it, up to the limit", async () => {
  let calls = 0;
  expect(
    await retry(FAST, never, (attempt) => (++calls < 3 ? Promise.reject(flaky) : Promise.resolve(attempt))),
  ).toBe(3);
  calls = 0;
  await expect(retry(FAST, never, () => (calls++, Promise.reject(flaky)))).rejects.toBe(flaky);
  expect(calls).toBe(3);
});

test("does not retry what fails the same way twice", async () => {
  let calls = 0;
  const lasting = new AppError("corrupt", "E_X", "damaged");
  await expect(retry(FAST, never, () => (calls++, Promise.reject(lasting)))).rejects.toBe(lasting);
  expect(calls).toBe(1);
});

test("an abort ends the pause between attempts", async () => {
  const stop = new AbortController();
  const slow = { attemptsMax: 3, baseMs: 1e9, waitMaxMs: 1e9, budgetMs: 1e9 };
  const waiting = retry(slow, stop.signal, () => Promise.reject(flaky));
  setTimeout(() => stop.abort(new Error("stopped")), 5);
  await expect(waiting).rejects.toThrow("stopped");
});
