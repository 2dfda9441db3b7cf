import { beforeEach, describe, expect, test } from "vitest";
import { AppError } from "../../../src/errors.ts";
import { readDamaged } from "../../../src/repository/damaged.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import { DAY, HOUR, forgetThem, forward, runPrune, stopClock } from "../../support/prunes.ts";
import {
  ALL,
  chainedPacks,
  expectAllRestore,
  expectNothingLeft,
  keysOf,
  NEW,
  rewriteAll,
  thinAgain,
  thinPacks,
} from "../../support/thin-packs.ts";
import { SEALINGS } from "../../support/memory-repository.ts";
import { diskOf, expectSame, newBackups, numbers, unchangedDisk } from "../backup/chunks.ts";

const never = new AbortController().signal;

beforeEach(stopClock);

test.each(SEALINGS)(
  "thin packs are copied, condemned in the same run, and deleted a grace later ($name)",
  async ({ encrypted }) => {
    const { backups, thin, contents } = await thinPacks(encrypted);
    const planned = await runPrune(backups.repository, { rewrite: ALL, dryRun: true });
    expect(planned.rewritten).toMatchObject({ packs: 3, newPacks: 0, forwards: 0 });
    const before = new Set(keysOf(backups, "packs/"));
    const report = await rewriteAll(backups);
    expect(report.rewritten).toMatchObject({ packs: 3, newPacks: 1, forwards: 3, damaged: 0 });
    expect(report.rewritten.bytes).toBe(planned.rewritten.bytes);
    expect(report.condemned.packs).toBe(3);
    const fresh = keysOf(backups, "packs/").filter((key) => !before.has(key));
    expect(fresh).toHaveLength(1);
    await expectAllRestore(backups, contents);

    forward(25 * HOUR);
    expect(await rewriteAll(backups)).toMatchObject({ deleted: { packs: 3 }, rewritten: { packs: 0 } });
    expect(thin.filter((key) => backups.store.objects.has(key))).toEqual([]);
    await expectAllRestore(backups, contents);
    expect((await backups.verify()).problems).toEqual([]);

    // R3: nothing but forwards leads to the new pack, and that keeps it for ever
    for (let time = 0; time < 4; time++) {
      forward(25 * HOUR);
      expect(await rewriteAll(backups)).toMatchObject({
        condemned: { packs: 0 },
        deleted: { packs: 0 },
        rewritten: { packs: 0 },
      });
    }
    expect(keysOf(backups, "packs/")).toContain(fresh[0]);
    await expectAllRestore(backups, contents);
  },
);

test("backups after it store nothing again, and find duplicates in the new packs", async () => {
  const { backups, thin, second } = await thinPacks();
  await rewriteAll(backups);
  for (const gone of [false, true]) {
    if (gone) {
      forward(25 * HOUR);
      expect((await rewriteAll(backups)).deleted.packs).toBe(3);
    }
    forward(HOUR);
    const rescan = await backups.backup([diskOf(NEW)]);
    expect(rescan.stats, gone ? "gone" : "condemned").toMatchObject({ chunksStored: 0, chunksUnchanged: 12 });
    const parent = rescan.manifest.generation;
    const incremental = await backups.backup([unchangedDisk(NEW)], { bitmap: "b", parent });
    expect(incremental.stats).toMatchObject({ chunksStored: 0 });
    const other = await backups.backup([diskOf([1, 5, 9])], { source: `db${Number(gone)}`, full: true });
    expect(other.stats).toMatchObject({ chunksStored: 0, chunksDeduplicated: 3 });
    expectSame(await backups.restore(other.manifest.disks[0]!), diskOf([1, 5, 9]).bytes);
    expectSame(await backups.restore(incremental.manifest.disks[0]!), diskOf(NEW).bytes);
  }
  expect(backups.warnings).toEqual([]);
  expect(thin).toHaveLength(3);
  expectSame(await backups.restore(second.manifest.disks[0]!), diskOf(NEW).bytes);
});

describe("limits", () => {
  test("up to --max-unused may stay dead", async () => {
    const { backups } = await thinPacks();
    // 9 of 21 slots are dead; 6 of 18 without the first
    expect((await rewriteAll(backups, { ...ALL, maxUnused: { percent: 43 } })).rewritten.packs).toBe(0);
    expect((await rewriteAll(backups, { ...ALL, maxUnused: { percent: 34 } })).rewritten.packs).toBe(1);
  });

  test("as bytes", async () => {
    const { backups } = await thinPacks();
    expect((await rewriteAll(backups, { ...ALL, maxUnused: 9 * 65536 })).rewritten.packs).toBe(0);
    expect((await rewriteAll(backups, { ...ALL, maxUnused: 4 * 65536 })).rewritten.packs).toBe(2);
  });

  test("a run copies no more than --max-repack-bytes; the next goes on", async () => {
    const { backups, contents } = await thinPacks();
    const limits = { ...ALL, maxRepackBytes: 65536 };
    for (let time = 0; time < 3; time++)
      expect((await rewriteAll(backups, limits)).rewritten).toMatchObject({ packs: 1, bytes: 65536 });
    expect((await rewriteAll(backups, limits)).rewritten.packs).toBe(0);
    await expectAllRestore(backups, contents);
  });

  test("without rewriting thin packs stay as they are", async () => {
    const { backups, thin } = await thinPacks();
    expect((await runPrune(backups.repository)).rewritten.packs).toBe(0);
    expect(thin.filter((key) => backups.store.objects.has(key))).toEqual(thin);
  });
});

test("small packs are joined once together they fill one", async () => {
  const backups = await newBackups({ packChunks: 13 });
  const contents = new Map<string, readonly number[]>();
  for (let time = 0; time < 14; time++) {
    if (time === 12) {
      forward(2 * DAY);
      expect((await rewriteAll(backups)).rewritten.packs, "not enough yet").toBe(0);
    }
    forward(HOUR);
    const chunks = [time + 1];
    const { manifest } = await backups.backup([diskOf(chunks)], { full: true });
    contents.set(manifest.generation, chunks);
  }
  forward(2 * DAY);
  expect(keysOf(backups, "packs/")).toHaveLength(14);
  expect((await rewriteAll(backups)).rewritten).toMatchObject({ packs: 14, newPacks: 2, forwards: 14 });
  forward(2 * DAY);
  expect((await rewriteAll(backups)).deleted.packs).toBe(14);
  expect(keysOf(backups, "packs/")).toHaveLength(2);
  await expectAllRestore(backups, contents);
  forward(2 * DAY);
  expect((await rewriteAll(backups)).rewritten.packs, "and no byte again").toBe(0);
});

test("sources keep packs and index objects of their own", async () => {
  const backups = await newBackups({ packChunks: 5 });
  const contents = new Map<string, readonly number[]>();
  for (const [source, first] of [
    ["web", 1],
    ["db", 101],
  ] as const) {
    const full = await backups.backup([diskOf(numbers(first, first + 8))], { source });
    forward(HOUR);
    const kept = [first, first + 4];
    const { manifest } = await backups.backup([diskOf(kept)], { source, full: true });
    contents.set(manifest.generation, kept);
    await forgetThem(backups.repository, source, [full.manifest.generation]);
  }
  forward(2 * DAY);
  expect((await rewriteAll(backups)).rewritten).toMatchObject({ packs: 4, newPacks: 2 });
  await expectAllRestore(backups, contents);
  for (const [source, first, found] of [
    ["web", 1, 1],
    ["web", 101, 0],
    ["db", 101, 1],
  ] as const) {
    forward(HOUR);
    const { stats } = await backups.backup([diskOf([first])], { source, full: true, scope: "source" });
    expect(stats.chunksDeduplicated, `${first} in ${source}`).toBe(found);
  }
});

test("a damaged slot is not copied but recorded; its pack stays, and goes when nobody uses the slot any more", async () => {
  const { backups, thin, second, contents } = await thinPacks();
  backups.store.bytes(thin[1]!)[16 + 100]! ^= 1; // of slot 0, the live one
  const said: string[] = [];
  const warn = (message: string): void => void said.push(message);
  const report = await runPrune(backups.repository, { rewrite: ALL, warn });
  expect(report.rewritten).toMatchObject({ packs: 2, damaged: 1 });
  expect(report.condemned.packs).toBe(2);
  const pack = thin[1]!.slice("packs/".length);
  expect(said).toEqual([expect.stringContaining(`Pack ${pack} is damaged at slot 0`)]);
  expect([...(await readDamaged(backups.repository, never)).get(pack)!]).toEqual([0]);
  expect((await rewriteAll(backups)).rewritten, "it is left alone from now on").toMatchObject({
    packs: 0,
    damaged: 0,
  });
  forward(25 * HOUR);
  await rewriteAll(backups);
  expect(thin.map((key) => backups.store.objects.has(key))).toEqual([false, true, false]);

  const healed = await backups.backup([diskOf(NEW)]);
  expect(healed.stats.chunksStored).toBe(1);
  await forgetThem(backups.repository, "web", [second.manifest.generation]);
  contents.delete(second.manifest.generation);
  contents.set(healed.manifest.generation, NEW);
  await expectAllRestore(backups, contents);
});

test("R2: what a backup came to use at the last moment keeps its pack until another forward covers it", async () => {
  const { backups, thin, contents } = await thinPacks();
  let late: string | undefined;
  const store = new HookedStore(backups.store, {
    before: async (operation, key) => {
      if (late !== undefined || operation !== "put" || !key.startsWith("forwards/")) return;
      late = "";
      // Slot 1 of the first pack, which was dead when the prune looked, and is a duplicate still.
      const { manifest, stats } = await backups.backup([diskOf([2])], { source: "db" });
      expect(stats.chunksDeduplicated).toBe(1);
      late = manifest.generation;
    },
  });
  await runPrune({ ...backups.repository, store }, { rewrite: ALL });
  contents.set(late!, [2]);
  await expectAllRestore(backups, contents);
  // without rewriting the pack stays for good
  for (let time = 0; time < 3; time++) {
    forward(25 * HOUR);
    await runPrune(backups.repository);
    expect(thin.filter((key) => backups.store.objects.has(key))).toHaveLength(1);
    await expectAllRestore(backups, contents);
  }
  const report = await rewriteAll(backups);
  expect(report.rewritten).toMatchObject({ packs: 1, bytes: 65536, forwards: 1 });
  forward(25 * HOUR);
  await rewriteAll(backups);
  expect(thin.filter((key) => backups.store.objects.has(key))).toEqual([]);
  await expectAllRestore(backups, contents);
  expect((await backups.verify()).problems).toEqual([]);
});

test("R2: a pack whose new pack is lost before it was deleted stays", async () => {
  const { backups, thin, contents } = await thinPacks();
  await rewriteAll(backups);
  const fresh = keysOf(backups, "packs/")
    .filter((key) => !thin.includes(key))
    .at(-1)!;
  backups.store.objects.delete(fresh);
  forward(25 * HOUR);
  await runPrune(backups.repository);
  await expectAllRestore(backups, contents);
  // one that is there, but is not what was written
  const again = await rewriteAll(backups);
  expect(again.rewritten.packs).toBe(3);
  const second = keysOf(backups, "packs/").at(-1)!;
  backups.store.bytes(second)[backups.store.bytes(second).length - 200]! ^= 1;
  forward(25 * HOUR);
  const said: string[] = [];
  await runPrune(backups.repository, { warn: (message) => void said.push(message) });
  expect(said).toHaveLength(3);
  await expectAllRestore(backups, contents);
});

test("a new pack that becomes thin is rewritten itself; forwards are led straight, and nothing is left over", async () => {
  const { backups, first, contents } = await thinAgain();
  expect((await rewriteAll(backups)).rewritten.packs).toBeGreaterThan(0);
  for (let time = 0; time < 5; time++) {
    await expectAllRestore(backups, contents);
    forward(25 * HOUR);
    await rewriteAll(backups);
  }
  expect(backups.store.objects.has(first)).toBe(false);
  await expectAllRestore(backups, contents);
  await expectNothingLeft(backups);
});

test("a chain of forwards is made straight", async () => {
  const { backups, contents } = await chainedPacks();
  expect((await rewriteAll(backups)).rewritten).toMatchObject({ packs: 1, newPacks: 1, forwards: 2 });
  for (let time = 0; time < 3; time++) {
    await expectAllRestore(backups, contents);
    forward(25 * HOUR);
    await rewriteAll(backups);
  }
  await expectAllRestore(backups, contents);
  await expectNothingLeft(backups);
  expect(keysOf(backups, "forwards/")).toHaveLength(1);
  expect((await backups.verify()).problems).toEqual([]);
});

test("when all that used them is forgotten, forwards and new packs go too", async () => {
  const { backups, contents } = await thinAgain();
  await rewriteAll(backups);
  const generations = await backups.generations();
  for (const source of ["web", "db"]) {
    const own = generations.filter((one) => one.source === source).map(({ generation }) => generation);
    await forgetThem(backups.repository, source, own);
  }
  contents.clear();
  for (let time = 0; time < 6; time++) {
    forward(25 * HOUR);
    await rewriteAll(backups);
  }
  expect([
    ...keysOf(backups, "packs/"),
    ...keysOf(backups, "layers/"),
    ...keysOf(backups, "forwards/"),
  ]).toEqual([]);
  expect(keysOf(backups, "index/")).toEqual([]);
});

test.each(["index/", "condemned/"])(
  "what a killed prune has copied is not copied again (%s)",
  async (prefix) => {
    const { backups, contents } = await thinPacks();
    let copied = false;
    const dying = new HookedStore(backups.store, {
      before: (operation, key) => {
        if (operation !== "put") return;
        copied ||= key.startsWith("forwards/");
        if (copied && key.startsWith(prefix)) throw new AppError("unavailable", "E_STORE", "killed");
      },
    });
    await expect(runPrune({ ...backups.repository, store: dying }, { rewrite: ALL })).rejects.toThrow(
      "killed",
    );
    const packs = keysOf(backups, "packs/");
    const report = await rewriteAll(backups);
    expect(report).toMatchObject({ condemned: { packs: 3 }, rewritten: { packs: 0, bytes: 0, newPacks: 0 } });
    expect(keysOf(backups, "packs/")).toEqual(packs);
    await expectAllRestore(backups, contents);
    // and duplicates are found in it
    const { stats } = await backups.backup([diskOf([1, 5, 9])], { source: "db", full: true });
    expect(stats).toMatchObject({ chunksStored: 0, chunksDeduplicated: 3 });
  },
);
