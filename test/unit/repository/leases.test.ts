import { afterEach, expect, test } from "vitest";
import { hasCode } from "../../../src/errors.ts";
import { type Lease, type LeaseOptions, acquireLease } from "../../../src/repository/leases.ts";
import { leaseKey, uuidv7 } from "../../../src/repository/names.ts";
import type { ObjectInfo } from "../../../src/store/store.ts";
import { SEALINGS, memoryRepository } from "../../support/memory-repository.ts";
import { MemoryStore } from "../../support/memory-store.ts";
import { seeded } from "../../support/seeded.ts";

const never = new AbortController().signal;
const T0 = Date.parse("2026-11-22T03:00:00Z");

const options: LeaseOptions = {
  holder: { host: "alpha", pid: 41 },
  isGone: () => false,
  ttlMs: 60_000,
  heartbeatMs: 1000,
  settleMs: 1,
};

const held: Lease[] = [];
afterEach(async () => {
  await Promise.all(held.splice(0).map((lease) => lease.release()));
});

async function acquire(...args: Parameters<typeof acquireLease>): Promise<Lease> {
  const lease = await acquireLease(...args);
  held.push(lease);
  return lease;
}

test.each(SEALINGS)(
  "R20: one holds a source, the next is told who and until when ($name)",
  async ({ encrypted }) => {
    let now = T0;
    const repository = memoryRepository({ encrypted, store: new MemoryStore({ now: () => now }) });
    const [first, second] = [uuidv7(T0), uuidv7(T0 + 1)];
    const lease = await acquire(repository, "web", first, options, never);
    const refusal = acquireLease(repository, "web", second, options, never);
    await expect(refusal).rejects.toMatchObject({
      kind: "locked",
      code: "E_LOCKED",
      context: { run: first, host: "alpha" },
    });
    await expect(refusal).rejects.toThrow(`web is being written by process 41 on alpha, run ${first}`);
    expect([...repository.store.objects.keys()]).toEqual([leaseKey("web", first)]);
    await acquire(repository, "db", second, options, never); // another source is free
    await lease.check(never);
    await lease.release();
    now += 1;
    await acquire(repository, "web", second, options, never);
  },
);

test("R20: also a run with a lower id steps back from one that holds", async () => {
  const repository = memoryRepository();
  await acquire(repository, "web", uuidv7(T0 + 5), options, never);
  await expect(acquireLease(repository, "web", uuidv7(T0), options, never)).rejects.toMatchObject({
    code: "E_LOCKED",
  });
});

test("R20: the lease of a run that died counts until it expires, and is swept away then", async () => {
  let now = T0;
  const store = new MemoryStore({ now: () => now });
  const repository = memoryRepository({ store });
  const dead = uuidv7(T0);
  const lease = await acquireLease(repository, "web", dead, options, never);
  const left = store.bytes(leaseKey("web", dead));
  await lease.release();
  await store.replace(leaseKey("web", dead), left, never); // as after a crash
  now += 59_000;
  await expect(acquireLease(repository, "web", uuidv7(now), options, never)).rejects.toMatchObject({
    code: "E_LOCKED",
  });
  now += 3_000;
  const heir = uuidv7(now);
  await acquire(repository, "web", heir, options, never);
  expect([...store.objects.keys()]).toEqual([leaseKey("web", heir)]);
});

test("a holder of this machine that is gone does not have to expire", async () => {
  const store = new MemoryStore();
  const repository = memoryRepository({ store });
  const lease = await acquire(repository, "web", uuidv7(T0), options, never);
  const isGone = (holder: { pid: number }): boolean => holder.pid === 41;
  await acquire(
    repository,
    "web",
    uuidv7(T0 + 1),
    { ...options, holder: { host: "alpha", pid: 42 }, isGone },
    never,
  );
  await expect(lease.check(never)).rejects.toMatchObject({ kind: "locked", code: "E_LEASE_LOST" });
});

test("check fails when somebody removed the lease", async () => {
  const repository = memoryRepository();
  const run = uuidv7(T0);
  const lease = await acquire(repository, "web", run, options, never);
  await repository.store.delete([leaseKey("web", run)], never);
  await expect(lease.check(never)).rejects.toMatchObject({ code: "E_LEASE_LOST" });
});

test("heartbeats renew the lease; release ends them and removes it", async () => {
  const repository = memoryRepository();
  const run = uuidv7(T0);
  const lease = await acquire(repository, "web", run, { ...options, heartbeatMs: 2 }, never);
  const puts = (): number => repository.store.requests()["PutObject"] ?? 0;
  const before = puts();
  while (puts() < before + 3) await new Promise((resolve) => setTimeout(resolve, 1));
  await lease.release();
  const after = puts();
  await new Promise((resolve) => setTimeout(resolve, 10));
  expect([puts(), repository.store.objects.size]).toEqual([after, 0]);
});

test("R20: a lease that could not be renewed in time is lost, and never revived", async () => {
  class Silent extends MemoryStore {
    silent = false;
    override async replace(key: string, body: Uint8Array, signal: AbortSignal): Promise<void> {
      if (this.silent) {
        await new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
      }
      await super.replace(key, body, signal);
    }
  }
  const store = new Silent();
  const repository = memoryRepository({ store });
  const lease = await acquire(
    repository,
    "web",
    uuidv7(T0),
    { ...options, ttlMs: 30, heartbeatMs: 5 },
    never,
  );
  store.silent = true;
  const lost = async (): Promise<boolean> =>
    lease.check(never).then(
      () => false,
      (error: unknown) => hasCode(error, "E_LEASE_LOST"),
    );
  while (!(await lost())) await new Promise((resolve) => setTimeout(resolve, 2));
  store.silent = false;
  const puts = store.requests()["PutObject"];
  await new Promise((resolve) => setTimeout(resolve, 20));
  expect(store.requests()["PutObject"]).toBe(puts);
  expect(await lost()).toBe(true);
});

test("a lease that cannot be read counts as held", async () => {
  const store = new MemoryStore();
  const repository = memoryRepository({ store });
  await store.replace(leaseKey("web", uuidv7(T0 + 9)), Buffer.from("garbage"), never);
  await expect(acquireLease(repository, "web", uuidv7(T0), options, never)).rejects.toThrow(
    "an unreadable lease",
  );
});

test("an abort while waiting ends with its reason and leaves no lease", async () => {
  const repository = memoryRepository();
  const stop = new AbortController();
  const reason = new Error("stop");
  const acquiring = acquireLease(repository, "web", uuidv7(T0), options, stop.signal);
  stop.abort(reason);
  await expect(acquiring).rejects.toBe(reason);
  expect(repository.store.objects.size).toBe(0);
});

/** Lets one request of many runs through at a time, in an order that depends on the seed. */
class Scheduled extends MemoryStore {
  readonly #waiting: (() => void)[] = [];

  async #turn(): Promise<void> {
    await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  /** Releases one request; false when none waits. */
  step(random: (below: number) => number): boolean {
    const [next] = this.#waiting.splice(random(this.#waiting.length), 1);
    next?.();
    return next !== undefined;
  }

  override async replace(key: string, body: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#turn();
    await super.replace(key, body, signal);
  }

  override async *list(prefix: string, signal: AbortSignal): AsyncIterable<ObjectInfo> {
    await this.#turn();
    yield* super.list(prefix, signal);
  }

  override async get(key: string, limit: number, signal: AbortSignal): Promise<Buffer> {
    await this.#turn();
    return super.get(key, limit, signal);
  }

  override async delete(keys: readonly string[], signal: AbortSignal): Promise<void> {
    await this.#turn();
    await super.delete(keys, signal);
  }
}

test("R20: whatever the order of requests, never two at once hold a source", async () => {
  let winners = 0;
  for (let seed = 1; seed <= 300; seed++) {
    const random = seeded(seed);
    const store = new Scheduled();
    const repository = memoryRepository({ store });
    let holding = 0;
    let left = 4;
    const runs = Array.from({ length: left }, (_, index) => uuidv7(T0 + index)).map(async (run) => {
      try {
        const lease = await acquireLease(
          repository,
          "web",
          run,
          { ...options, settleMs: 0, heartbeatMs: 60_000 },
          never,
        );
        winners++;
        expect(++holding, `seed ${seed}`).toBe(1);
        await lease.check(never);
        expect(holding--, `seed ${seed}`).toBe(1);
        await lease.release();
      } catch (error) {
        if (!hasCode(error, "E_LOCKED")) throw error;
      } finally {
        left--;
      }
    });
    while (left > 0) {
      for (let turn = random(4); turn >= 0; turn--) await new Promise((resolve) => setImmediate(resolve));
      store.step(random);
    }
    await Promise.all(runs);
    expect(store.objects.size, `seed ${seed}`).toBe(0);
  }
  expect(winners).toBeGreaterThan(250);
});
