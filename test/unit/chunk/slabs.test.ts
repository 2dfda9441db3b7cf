import { expect, test } from "vitest";
import { SlabPool } from "../../../src/chunk/slabs.ts";
import { hasCode } from "../../../src/errors.ts";

const never = new AbortController().signal;

test("gives out so many slabs and then waits, first come first served", async () => {
  const pool = new SlabPool(100, 2);
  const one = await pool.take(never);
  const two = await pool.take(never);
  expect(one.bytes.length).toBe(100);
  expect(one.bytes.buffer).toBeInstanceOf(SharedArrayBuffer);
  expect(one.bytes.buffer).not.toBe(two.bytes.buffer);
  const order: string[] = [];
  const third = pool.take(never).then((slab) => (order.push("third"), slab));
  const fourth = pool.take(never).then((slab) => (order.push("fourth"), slab));
  two.release();
  expect((await third).bytes.buffer).toBe(two.bytes.buffer);
  expect(order).toEqual(["third"]);
  one.release();
  expect((await fourth).bytes.buffer).toBe(one.bytes.buffer);
});

test("releasing twice does not give one slab to two", async () => {
  const pool = new SlabPool(8, 1);
  const slab = await pool.take(never);
  slab.release();
  const next = await pool.take(never);
  slab.release();
  let third = false;
  void pool.take(never).then(() => (third = true));
  await new Promise(setImmediate);
  expect(third).toBe(false);
  next.release();
});

test("a slab used before is used again before a new one is allocated", async () => {
  const pool = new SlabPool(8, 5);
  const first = await pool.take(never);
  first.release();
  expect((await pool.take(never)).bytes.buffer).toBe(first.bytes.buffer);
});

test("an aborted wait ends with the reason and loses no slab", async () => {
  const pool = new SlabPool(8, 1);
  const slab = await pool.take(never);
  const run = new AbortController();
  const waiting = pool.take(run.signal);
  const behind = pool.take(never);
  const reason = new Error("stop");
  run.abort(reason);
  await expect(waiting).rejects.toBe(reason);
  slab.release();
  expect((await behind).bytes.buffer).toBe(slab.bytes.buffer);
  await expect(pool.take(run.signal)).rejects.toBe(reason);
});

test("an abort after the slab was given changes nothing", async () => {
  const pool = new SlabPool(8, 1);
  const slab = await pool.take(never);
  const run = new AbortController();
  const waiting = pool.take(run.signal);
  slab.release();
  run.abort(new Error("too late"));
  const given = await waiting;
  given.release();
  await expect(pool.take(never)).resolves.toBeDefined();
});

test.each([
  [0, 1],
  [1, 0],
  [NaN, 1],
])("%i bytes times %i is no pool", (bytes, count) => {
  expect(() => new SlabPool(bytes, count)).toThrow(expect.toSatisfy((error) => hasCode(error, "E_SLABS")));
});
