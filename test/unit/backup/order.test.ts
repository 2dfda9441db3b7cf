import { describe, expect, test } from "vitest";
import { AppError } from "../../../src/errors.ts";
import { acquireLease } from "../../../src/repository/leases.ts";
import { Prefix, uuidv7 } from "../../../src/repository/names.ts";
import { listRuns } from "../../../src/repository/runs.ts";
import { FaultyStore } from "../../support/faulty-store.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import { MemoryStore } from "../../support/memory-store.ts";
import { diskOf, expectSame, newBackups, numbers, unchangedDisk } from "./chunks.ts";

const never = new AbortController().signal;

function keysUnder(store: MemoryStore, ...prefixes: readonly string[]): string[] {
  return [...store.objects.keys()].filter((key) => prefixes.some((prefix) => key.startsWith(prefix)));
}

test("R1, R11, R20, R23: the end of a backup goes in the one order that keeps every promise", async () => {
  const backups = await newBackups({ packChunks: 4 });
  const log: string[] = [];
  const store = new HookedStore(backups.store, {
    after: (operation, key) => {
      const folder = /^[a-z]*/.exec(key)![0];
      if (!["now", "part", "beginUpload", "get", "getTail"].includes(operation))
        log.push(`${operation} ${folder}`);
    },
  });
  await backups.backup([diskOf(numbers(1, 9), { onRead: () => void log.push("read") })], {
    store,
    assertAlive: () => Promise.resolve(void log.push("assertAlive")),
    onClose: (outcome) => log.push(`close ${outcome}`),
  });
  expect(log.slice(log.lastIndexOf("read"))).toEqual([
    "read",
    ...["complete packs", "complete packs", "complete packs"],
    "assertAlive",
    "put layers",
    "put index",
    "list generations", // for the sequence
    "list leases",
    "put generations",
    "list condemned",
    "close committed",
    "put runs",
    "delete leases",
  ]);
});

describe("R6, R7: the parent is pinned before it is relied on", () => {
  test("the begin record names it, and it is looked up once more afterwards", async () => {
    const backups = await newBackups();
    const { manifest: parent } = await backups.backup([diskOf([1, 2])]);
    const log: string[] = [];
    const store = new HookedStore(backups.store, {
      before: (operation, key) => {
        if (key.includes(".begin.json")) log.push("begin");
        else if (operation === "get" && key.includes(parent.generation)) log.push("parent");
        else if (key.startsWith(Prefix.layers)) log.push("layer");
      },
    });
    await backups.backup([diskOf([1, 3])], { store, onOpen: () => log.push("open") });
    expect(log.slice(0, 5)).toEqual(["parent", "begin", "parent", "open", "layer"]);
    const runs = await listRuns(backups.repository, "web", 2, never);
    expect(runs.map(({ begin }) => begin.pinned)).toEqual([null, parent.generation]);
    expect(runs[1]!.begin).toMatchObject({ purpose: "backup", host: "test", writer: "test" });
  });

  test("a parent that is deleted before the pin is a clear error, and the disk is not even opened", async () => {
    const backups = await newBackups();
    const { manifest: parent } = await backups.backup([diskOf([1, 2])]);
    const store = new HookedStore(backups.store, {
      after: (_, key) => {
        if (key.includes(".begin.json"))
          backups.store.objects.delete(`generations/web/${parent.generation}.json`);
      },
    });
    const run = backups.backup([unchangedDisk([1, 2])], { store, bitmap: "b0", parent: parent.generation });
    await expect(run).rejects.toMatchObject({ kind: "notFound", code: "E_NO_GENERATION" });
    await expect(run).rejects.toThrow(parent.generation);
    expect(backups.closed).toEqual(["committed"]); // of the first run
    expect(await backups.generations()).toEqual([]);
    const last = (await listRuns(backups.repository, "web", 1, never))[0]!;
    expect(last.end).toMatchObject({
      outcome: "failed",
      generation: null,
      error: { code: "E_NO_GENERATION" },
    });
  });
});

test("a point in time that did not hold commits nothing", async () => {
  const backups = await newBackups();
  const lost = new AppError("source", "E_JOB_GONE", "The job that keeps the point in time is gone");
  const assertAlive = (): Promise<void> => Promise.reject(lost);
  await expect(backups.backup([diskOf([1, 2])], { assertAlive })).rejects.toBe(lost);
  expect(backups.closed).toEqual(["failed"]);
  expect(keysUnder(backups.store, "generations/", "layers/", "leases/")).toEqual([]);
});

test("a lease that was lost commits nothing", async () => {
  const backups = await newBackups();
  const assertAlive = (): Promise<void> => {
    for (const key of keysUnder(backups.store, "leases/")) backups.store.objects.delete(key);
    return Promise.resolve();
  };
  await expect(backups.backup([diskOf([1, 2])], { assertAlive })).rejects.toMatchObject({
    code: "E_LEASE_LOST",
  });
  expect(await backups.generations()).toEqual([]);
  expect(backups.closed).toEqual(["failed"]);
});

describe("R19: the reply to the manifest is lost", () => {
  const manifest = /^generations\//;

  test("it is there: the run goes on", async () => {
    const backups = await newBackups();
    const store = new FaultyStore(backups.store, { operation: "put", kind: "after", key: manifest });
    const report = await backups.backup([diskOf([1, 2])], { store });
    store.assertAllHit();
    expect((await backups.generations()).map(({ generation }) => generation)).toEqual([
      report.manifest.generation,
    ]);
    expect(backups.closed).toEqual(["committed"]);
  });

  test("it is not there: the run has failed, and the next one stores nothing twice", async () => {
    const backups = await newBackups();
    const store = new FaultyStore(backups.store, { operation: "put", kind: "before", key: manifest });
    await expect(backups.backup([diskOf([1, 2])], { store })).rejects.toMatchObject({ code: "E_STORE" });
    store.assertAllHit();
    expect(backups.closed).toEqual(["failed"]);
    const { stats } = await backups.backup([diskOf([1, 2])]);
    expect(stats).toMatchObject({ chunksStored: 0, chunksDeduplicated: 2 });
  });

  test.each(["after", "before"] as const)("nobody can tell (%s): nothing is given up", async (kind) => {
    const backups = await newBackups();
    const store = new FaultyStore(
      backups.store,
      { operation: "put", kind, key: manifest },
      { operation: "get", kind: "before", key: manifest },
    );
    await expect(backups.backup([diskOf([1, 2])], { store })).rejects.toMatchObject({
      kind: "unavailable",
      code: "E_COMMIT_UNKNOWN",
    });
    store.assertAllHit();
    expect(backups.closed).toEqual(["unknown"]);
    expect(await backups.generations()).toHaveLength(kind === "after" ? 1 : 0);
    const disk = diskOf([1, 2]);
    const next = await backups.backup([disk]);
    expect(next.manifest.sequence).toBe(kind === "after" ? 2 : 1);
    expectSame(await backups.restore(next.manifest.disks[0]!), disk.bytes);
  });
});

test("R20: of two backups of one source at once, one is refused and leaves no trace", async () => {
  const backups = await newBackups();
  const opened = Promise.withResolvers<undefined>();
  const gate = Promise.withResolvers<undefined>();
  const first = backups.backup([
    diskOf([1, 2], {
      onRead: async () => {
        opened.resolve(undefined);
        await gate.promise;
      },
    }),
  ]);
  await opened.promise;
  const before = [...backups.store.objects.keys()];
  const refused = backups.backup([diskOf([1, 2])]);
  await expect(refused).rejects.toMatchObject({ kind: "locked", code: "E_LOCKED" });
  await expect(refused).rejects.toThrow("web is being written by process 1 on test");
  expect([...backups.store.objects.keys()]).toEqual(before);
  const elsewhere = await backups.backup([diskOf([3])], { source: "db" }); // another source is free
  expect(elsewhere.manifest.sequence).toBe(1);
  gate.resolve(undefined);
  expect((await first).manifest.sequence).toBe(1);
  expect((await backups.backup([diskOf([1, 2])])).manifest.sequence).toBe(2);
});

test("R20: the lease of a process that is gone does not stop anybody", async () => {
  const backups = await newBackups();
  const timing = { ttlMs: 600_000, heartbeatMs: 600_000, settleMs: 1, isGone: (): boolean => false };
  const holder = { host: "test", pid: 77 };
  const dead = await acquireLease(
    backups.repository,
    "web",
    uuidv7(Date.now()),
    { ...timing, holder },
    never,
  );
  await expect(backups.backup([diskOf([1])])).rejects.toMatchObject({ code: "E_LOCKED" });
  await backups.backup([diskOf([1])], { isGone: ({ pid }) => pid === 77 });
  expect(keysUnder(backups.store, "leases/"), "its lease is cleared away").toEqual([]);
  await dead.release();
});

test.each([
  ["behind", -16],
  ["ahead of", 16],
])("R22: a clock that is %s the store's is refused with the offset", async (word, minutes) => {
  const store = new MemoryStore({ now: () => Date.now() - minutes * 60_000 });
  const backups = await newBackups({ store });
  const refused = backups.backup([diskOf([1])]);
  await expect(refused).rejects.toMatchObject({ kind: "usage", code: "E_CLOCK_OFF" });
  await expect(refused).rejects.toThrow(`16 minutes ${word} the store's`);
  expect([...store.objects.keys()]).toEqual([]);
});

test("R22: generations are in order though the store's clock goes back", async () => {
  let now = Date.now();
  const backups = await newBackups({ store: new MemoryStore({ now: () => now }) });
  const first = await backups.backup([diskOf([1])]);
  now -= 5 * 60_000;
  const second = await backups.backup([diskOf([2])]);
  expect(second.manifest.generation > first.manifest.generation).toBe(true);
  expect(second.manifest).toMatchObject({ sequence: 2, parent: { generation: first.manifest.generation } });
});

test("a request that cannot be is refused before anything is written", async () => {
  const backups = await newBackups();
  await backups.backup([diskOf([1])]);
  const before = backups.store.objects.size;
  await expect(backups.backup([diskOf([1])], { bitmap: "b0" })).rejects.toMatchObject({ kind: "usage" });
  await expect(backups.backup([diskOf([1])], { parent: "web" })).rejects.toMatchObject({ kind: "usage" });
  expect(backups.store.objects.size).toBe(before);
});
