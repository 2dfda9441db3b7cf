import { expect, test } from "vitest";
import { acquireLease, DEFAULT_LEASE, type Lease } from "../../../src/repository/leases.ts";
import { leaseKey, runBeginKey, uuidv7 } from "../../../src/repository/names.ts";
import { livePins, type PinLookup } from "../../../src/repository/pins.ts";
import { beginRun, endRun, type RunBegin, type RunEnd } from "../../../src/repository/runs.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import { SEALINGS, TEST_REPOSITORY, memoryRepository } from "../../support/memory-repository.ts";
import { MemoryStore } from "../../support/memory-store.ts";

const never = new AbortController().signal;
const HOUR = 3_600_000;
const START = Date.parse("2026-11-22T03:00:00Z");
const lookup: PinLookup = { graceMs: 24 * HOUR, isGone: () => false };

function world(encrypted = false): {
  repository: ReturnType<typeof memoryRepository<MemoryStore>>;
  clock: { now: number };
} {
  const clock = { now: START };
  return {
    repository: memoryRepository({ encrypted, store: new MemoryStore({ now: () => clock.now }) }),
    clock,
  };
}

function begin(purpose: RunBegin["purpose"], pinned: string | null, run = uuidv7(START)): RunBegin {
  const startedAt = new Date(START).toISOString();
  const home = { format: 1, repository: TEST_REPOSITORY, source: "web" } as const;
  return { ...home, run, purpose, startedAt, pinned, host: "alpha", writer: "blockhaul 0" };
}

async function lease(repository: ReturnType<typeof memoryRepository>, run: string): Promise<Lease> {
  const options = { ...DEFAULT_LEASE, holder: { host: "alpha", pid: 7 }, isGone: () => false };
  return await acquireLease(repository, "web", run, options, never);
}

function end(run: string): RunEnd {
  const home = { format: 1, repository: TEST_REPOSITORY, source: "web", run } as const;
  const endedAt = new Date(START).toISOString();
  return { ...home, endedAt, outcome: "done", generation: null, error: null, seconds: 1, requests: {} };
}

test.each(SEALINGS)("a restore pins until it ends, or for the grace ($name)", async ({ encrypted }) => {
  const { repository, clock } = world(encrypted);
  const [one, two] = [begin("restore", uuidv7(1)), begin("serve", uuidv7(2))];
  await beginRun(repository, one, never);
  await beginRun(repository, two, never);
  const pins = await livePins(repository, "web", lookup, never);
  expect(new Set(pins)).toEqual(new Set([one, two]));
  expect(await livePins(repository, "db", lookup, never)).toEqual([]);
  await endRun(repository, end(one.run), never);
  expect(await livePins(repository, "web", lookup, never)).toEqual([two]);
  clock.now = START + 24 * HOUR;
  expect(await livePins(repository, "web", lookup, never)).toEqual([two]);
  clock.now += 1;
  expect(await livePins(repository, "web", lookup, never)).toEqual([]);
});

test("a backup pins as long as its lease counts, however old it is", async () => {
  const { repository, clock } = world();
  const backup = begin("backup", uuidv7(1));
  const held = await lease(repository, backup.run);
  await beginRun(repository, backup, never);
  expect(await livePins(repository, "web", lookup, never)).toEqual([backup]);
  const elsewhere = { ...lookup, isGone: () => true }; // a process of this machine that is gone
  expect(await livePins(repository, "web", elsewhere, never)).toEqual([]);

  clock.now = START + 100 * HOUR;
  const bytes = repository.store.bytes(leaseKey("web", backup.run));
  await repository.store.replace(leaseKey("web", backup.run), bytes, never); // a heartbeat
  expect(await livePins(repository, "web", lookup, never)).toEqual([backup]);
  clock.now += DEFAULT_LEASE.ttlMs + 1000;
  expect(await livePins(repository, "web", lookup, never)).toEqual([]);
  clock.now = START;
  await held.release();
  expect(await livePins(repository, "web", lookup, never)).toEqual([]); // without a lease it is dead, young or not
});

test("a run without a pin, and one that was cleared away while we looked, pin nothing", async () => {
  const { repository } = world();
  await beginRun(repository, begin("restore", null), never);
  const gone = begin("restore", uuidv7(1));
  await beginRun(repository, gone, never);
  const store = new HookedStore(repository.store, {
    before: (operation, key) => {
      if (operation === "get" && key.includes(gone.run)) repository.store.objects.delete(key);
    },
  });
  expect(await livePins({ ...repository, store }, "web", lookup, never)).toEqual([]);
});

test("a begin record that cannot be read is an error while its run may live, and nothing once it cannot", async () => {
  const { repository, clock } = world();
  const run = begin("restore", uuidv7(1));
  await beginRun(repository, run, never);
  repository.store.bytes(runBeginKey("web", run.run))[30]! ^= 1;
  const looking = livePins(repository, "web", lookup, never);
  await expect(looking).rejects.toMatchObject({ kind: "corrupt", code: "E_RECORD" });
  clock.now = START + 25 * HOUR;
  expect(await livePins(repository, "web", lookup, never)).toEqual([]);
});

test("R24: runs are listed before leases, so one that begins in between is not taken for dead", async () => {
  const { repository } = world();
  const backup = begin("backup", uuidv7(1));
  const early = begin("restore", null, uuidv7(START - HOUR)); // so that leases are looked at
  await beginRun(repository, early, never);
  const order: string[] = [];
  let held: Lease | undefined;
  const store = new HookedStore(repository.store, {
    before: async (operation, prefix) => {
      if (operation !== "list") return;
      order.push(prefix);
      if (order.length > 1) return;
      held = await lease(repository, backup.run);
      await beginRun(repository, backup, never);
    },
  });
  expect(await livePins({ ...repository, store }, "web", lookup, never)).toEqual([backup]);
  expect(order).toEqual(["runs/web/", "leases/web/"]);
  await held!.release();
});
