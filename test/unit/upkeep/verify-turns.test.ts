import { expect, test } from "vitest";
import type { Ledger } from "../../../src/repository/checked.ts";
import { readLedger } from "../../../src/repository/checked.ts";
import { checkedKey, newUuid } from "../../../src/repository/names.ts";
import { choosePacks, ledgerAfter } from "../../../src/upkeep/verify/turns.ts";
import { FaultyStore } from "../../support/faulty-store.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import { seeded } from "../../support/seeded.ts";
import { diskOf, newBackups, numbers } from "../backup/chunks.ts";

const never = new AbortController().signal;

test("the promise: whatever comes, goes and is stopped, each pack is read in any ceil(100/N) runs that it is there", () => {
  for (let seed = 1; seed <= 200; seed++) {
    const random = seeded(seed);
    const percent = [1 + random(100), 0.5 + random(20), 10, 50, 100][random(5)]!;
    const within = Math.ceil(100 / percent);
    let ledger: Ledger = { runs: 0, last: new Map() };
    /** The slow model: how many runs in a row have not read a pack. */
    let unread = new Map<string, number>();
    let named = 0;
    for (let step = 0; step < 3 * within + 20; step++) {
      for (let news = random(step === 0 ? 40 : 4); news > 0; news--) unread.set(`pack ${named++}`, 0);
      for (const pack of unread.keys()) if (random(12) === 0) unread.delete(pack);
      const chosen = choosePacks(ledger, [...unread.keys()], percent, () => random(1000) / 1000);
      const stopped = random(6) === 0;
      const read = new Set([...chosen].filter(() => !stopped || random(2) === 0));
      ledger = ledgerAfter(ledger, [...unread.keys()], read, !stopped);
      unread = new Map(
        [...unread].map(([pack, runs]) => [pack, read.has(pack) ? 0 : runs + (stopped ? 0 : 1)]),
      );
      for (const [pack, runs] of unread)
        expect(runs, `seed ${seed}: ${pack}, ${percent}%`).toBeLessThan(within);
    }
  }
});

test("where nothing comes and goes, a run reads its share and no more", () => {
  const packs = numbers(0, 95).map(String);
  let ledger: Ledger = { runs: 0, last: new Map() };
  for (let run = 0; run < 30; run++) {
    const chosen = choosePacks(ledger, packs, 10);
    expect(chosen.size).toBe(10);
    ledger = ledgerAfter(ledger, packs, chosen, true);
  }
});

test("much that is new does not make a run read more than its share, nor push aside what is old", () => {
  const old = numbers(0, 100).map((number) => `old ${number}`);
  let ledger: Ledger = { runs: 0, last: new Map() };
  for (let run = 0; run < 12; run++) ledger = ledgerAfter(ledger, old, choosePacks(ledger, old, 10), true);
  const all = [...old, ...numbers(0, 100).map((number) => `new ${number}`)];
  const chosen = choosePacks(ledger, all, 10);
  expect(chosen.size).toBe(20);
  expect([...chosen].filter((pack) => pack.startsWith("new"))).toEqual([]);
});

test("a run that goes on with a stopped one reads what that one left of the share, and counts as both", () => {
  const packs = Array.from({ length: 40 }, (_, index) => `pack-${index}`);
  const before = ledgerAfter({ runs: 0, last: new Map() }, packs, new Set(packs.slice(20)), true);
  const stopped = ledgerAfter(before, packs, new Set(packs.slice(0, 3)), false);
  const rest = choosePacks(stopped, packs, 10, Math.random, true);
  expect(rest.size).toBe(1);
  expect(packs.slice(3, 20)).toContain([...rest][0]);
  expect(choosePacks(stopped, packs, 10).size).toBe(4);
  const after = ledgerAfter(stopped, packs, rest, true, true);
  expect(after.runs).toBe(2);
  expect([...after.last.values()].filter((last) => last === 2)).toHaveLength(4);
});

test("ten runs of a tenth, by whichever host, read everything, and leave one small ledger", async () => {
  const backups = await newBackups({ packChunks: 4 });
  await backups.backup([diskOf(numbers(1, 40))]);
  const packs = [...backups.store.objects.keys()].filter((key) => key.startsWith("packs/"));
  const read = new Set<string>();
  const store = new HookedStore(backups.store, {
    after: (operation, key) => {
      if (operation === "getRange" && key.startsWith("packs/")) read.add(key);
    },
  });
  let chunks = 0;
  for (let run = 0; run < 10; run++) {
    const report = await backups.verify({ readPercent: 10, store });
    expect(report.packsRead).toBe(Math.ceil(packs.length / 10));
    chunks += report.chunksRead;
  }
  expect([...read].sort()).toEqual(packs.sort());
  expect(chunks).toBeGreaterThanOrEqual(39);
  const ledgers = [...backups.store.objects.keys()].filter((key) => key.startsWith("checked/"));
  expect(ledgers).toHaveLength(1);
  expect(backups.store.bytes(ledgers[0]!).length).toBe(16 + 8 + 20 * packs.length + 32);
  expect(await readLedger(backups.repository, never, () => undefined)).toMatchObject({ runs: 10 });
});

test("a run that fails in the middle notes what it read, and counts as none", async () => {
  const backups = await newBackups({ packChunks: 4 });
  await backups.backup([diskOf(numbers(1, 40))]);
  const fault = { operation: "getRange", key: /^packs/, kind: "before", skip: 20 } as const;
  await expect(backups.verify({ store: new FaultyStore(backups.store, fault) })).rejects.toMatchObject({
    code: "E_STORE",
  });
  const ledger = await readLedger(backups.repository, never, () => undefined);
  expect(ledger.runs).toBe(0);
  const read = [...ledger.last.values()].filter((last) => last === 1).length;
  expect(read).toBeGreaterThan(0);
  expect(read).toBeLessThan(ledger.last.size);
});

test("a ledger that is damaged, or may not be written: a warning, and the run goes on", async () => {
  const backups = await newBackups({ packChunks: 4 });
  await backups.backup([diskOf(numbers(1, 9))]);
  const key = checkedKey(newUuid());
  await backups.store.put(key, Buffer.from("no ledger"), never);
  expect((await backups.verify()).problems).toEqual([]);
  expect(backups.warnings.join()).toContain(key);
  expect(backups.store.objects.has(key), "superseded").toBe(false);
});

test("two verifies at once: neither loses what the other has read", async () => {
  const backups = await newBackups({ packChunks: 4 });
  await backups.backup([diskOf(numbers(1, 40))]);
  await Promise.all([backups.verify({ readPercent: 10 }), backups.verify({ readPercent: 10 })]);
  const ledger = await readLedger(backups.repository, never, () => undefined);
  expect(ledger.runs).toBeGreaterThanOrEqual(1);
  expect([...ledger.last.values()].filter((last) => last > 0).length).toBeGreaterThanOrEqual(2);
});
