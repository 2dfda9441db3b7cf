import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { KiB } from "../../../src/bytes/size.ts";
import { RateLimit } from "../../../src/flow/rate-limit.ts";
import { failure } from "../../support/outcomes.ts";
import { seeded } from "../../support/seeded.ts";

const RATE = 512 * KiB;
const PIECE_MAX = 64 * KiB;

const never = new AbortController().signal;

beforeEach(() => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] });
});

afterEach(() => {
  vi.useRealTimers();
});

/** Takes pieces for ever, and counts them. */
class Taker {
  bytes = 0;
  readonly #limit: RateLimit;
  readonly #size: () => number;
  readonly #stop = new AbortController();
  readonly #done: Promise<unknown>;

  constructor(limit: RateLimit, size: () => number) {
    this.#limit = limit;
    this.#size = size;
    this.#done = this.#run().catch((error: unknown) => error);
  }

  async #run(): Promise<void> {
    for (;;) {
      const size = this.#size();
      await this.#limit.take(size, this.#stop.signal);
      this.bytes += size;
    }
  }

  async stop(): Promise<unknown> {
    this.#stop.abort("stopped");
    return await this.#done;
  }
}

test("over any time no more goes than the rate and a burst, and no less than the rate", async () => {
  const random = seeded(7);
  const limit = new RateLimit(RATE);
  const taker = new Taker(limit, () => 1 + random(PIECE_MAX));
  const seen: number[] = [];
  for (let second = 0; second <= 20; second++) {
    seen.push(taker.bytes);
    await vi.advanceTimersByTimeAsync(1000);
  }
  for (const [from, before] of seen.entries()) {
    for (const [to, after] of seen.entries()) {
      if (to <= from || from === 0) continue;
      const fair = (to - from) * RATE;
      expect(after - before).toBeLessThanOrEqual(fair + limit.burst + PIECE_MAX);
      expect(after - before).toBeGreaterThanOrEqual(fair - PIECE_MAX - (to - from) * KiB);
    }
  }
  expect(await taker.stop()).toBe("stopped");
});

test("a pause earns a burst and no more", async () => {
  const limit = new RateLimit(RATE);
  await vi.advanceTimersByTimeAsync(3_600_000);
  const taker = new Taker(limit, () => KiB);
  await vi.advanceTimersByTimeAsync(0);
  expect(taker.bytes).toBe(limit.burst);
  await taker.stop();
});

test("who takes in turn gets an equal share", async () => {
  const limit = new RateLimit(RATE);
  const takers = [1, 2, 3, 4].map(() => new Taker(limit, () => 16 * KiB));
  await vi.advanceTimersByTimeAsync(30_000);
  const counts = takers.map(({ bytes }) => bytes);
  expect(Math.max(...counts) - Math.min(...counts)).toBeLessThanOrEqual(16 * KiB);
  for (const taker of takers) await taker.stop();
});

test("a piece larger than a burst goes in one, and what comes next waits for all of it", async () => {
  const limit = new RateLimit(RATE);
  await limit.take(10 * RATE, never);
  let gone = false;
  void limit.take(1, never).then(() => (gone = true));
  await vi.advanceTimersByTimeAsync(9_700);
  expect(gone).toBe(false);
  await vi.advanceTimersByTimeAsync(400);
  expect(gone).toBe(true);
});

test("who gives up while waiting counts as not gone, and holds nobody up", async () => {
  const limit = new RateLimit(RATE);
  await limit.take(limit.burst, never);
  const impatient = new AbortController();
  const given = failure(limit.take(100 * RATE, impatient.signal));
  let next = false;
  void limit.take(KiB, never).then(() => (next = true));
  await vi.advanceTimersByTimeAsync(100);
  expect(next).toBe(false); // first come, first served
  impatient.abort("enough");
  expect(await given).toBe("enough");
  await vi.advanceTimersByTimeAsync(0);
  expect(next).toBe(true);
  expect(vi.getTimerCount()).toBe(0);
  expect(await failure(limit.take(1, impatient.signal))).toBe("enough");
});
