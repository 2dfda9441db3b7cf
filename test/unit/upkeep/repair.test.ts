import { expect, test } from "vitest";
import { damagedRecords, readDamaged, recordDamaged } from "../../../src/repository/damaged.ts";
import { loadGenerations } from "../../../src/repository/generations.ts";
import { holdGeneration, loadHolds } from "../../../src/repository/holds.ts";
import { readIndexObject } from "../../../src/repository/index-objects.ts";
import { encodeCondemned } from "../../../src/repository/condemned.ts";
import { condemnedKey, newUuid, packKey } from "../../../src/repository/names.ts";
import { RUN_GRACE_MS } from "../../../src/repository/pins.ts";
import { repair, type RepairAction } from "../../../src/upkeep/repair.ts";
import type { Problem, VerifyReport } from "../../../src/upkeep/verify.ts";
import { Backups } from "../../support/backups.ts";
import { memoryRepository, SEALINGS } from "../../support/memory-repository.ts";
import { MemoryStore } from "../../support/memory-store.ts";
import { CHUNK, chunksOf, diskOf, expectSame, numbers } from "../backup/chunks.ts";

const never = new AbortController().signal;
const CONTENTS = numbers(1, 40);

/** The chunks are raw noise, plain or sealed. */
class World {
  readonly store = new MemoryStore({ now: () => Date.now() + this.aheadMs });
  /** How far the store's clock has been moved on. */
  aheadMs = 0;
  backups!: Backups;

  /** Two generations of web, the second one held, in packs of a few chunks. */
  static async start(encrypted = false): Promise<World> {
    const world = new World();
    const { store } = world;
    const repository = memoryRepository({ encrypted, store, packSize: 20 * CHUNK, partSize: CHUNK });
    world.backups = await Backups.start(repository);
    await world.backups.backup([diskOf(CONTENTS)]);
    await world.backups.backup([diskOf([...CONTENTS, 99])]);
    const [, second] = await world.backups.generations();
    await holdGeneration(repository, second!, { reason: "mine", host: "test", writer: "test" }, never);
    return world;
  }

  keys(prefix: string): string[] {
    return [...this.store.objects.keys()].filter((key) => key.startsWith(prefix));
  }

  /** As one line each, with what changed nothing in the store told apart. */
  snapshot(): string[] {
    return [...this.store.objects].map(([key, { bytes }]) => `${key} ${bytes.toString("base64")}`).sort();
  }

  async repair(
    options: { readonly dryRun?: boolean; readonly readPercent?: number } = {},
  ): Promise<{ actions: string[]; report: VerifyReport }> {
    const actions: RepairAction[] = [];
    const found: Problem[] = [];
    const manifests = await loadGenerations(this.backups.repository, undefined, never, (error, name) =>
      found.push({ message: error.message, code: error.code, generations: [name.generation] }),
    );
    const request = {
      manifests,
      found,
      readPercent: options.readPercent ?? 0,
      dryRun: options.dryRun ?? false,
      isGone: () => false,
      host: "test",
      writer: "test",
      warn: () => undefined,
      progress: () => undefined,
      act: (action: RepairAction) => void actions.push(action),
    };
    const report = await repair(request, this.backups.tools(), new AbortController());
    return { actions: actions.map(({ action, object }) => `${action} ${object}`), report };
  }

  /** With a cache of its own: what the repository does not say, nobody knows. */
  async backupElsewhere(): Promise<number> {
    const cacheDir = `${this.backups.cacheDir}/${newUuid()}`;
    const { stats } = await this.backups.backup([diskOf(CONTENTS)], {
      cacheDir,
      source: "other",
      full: true,
    });
    return stats.chunksStored;
  }
}

test.each(SEALINGS)("nothing to do: nothing is done ($name)", async ({ encrypted }) => {
  const world = await World.start(encrypted);
  const before = world.snapshot();
  const { actions, report } = await world.repair();
  expect(actions).toEqual([]);
  expect(report.problems).toEqual([]);
  expect(world.snapshot()).toEqual(before);
});

test.each(SEALINGS)("an index that is gone is made anew from the packs ($name)", async ({ encrypted }) => {
  const world = await World.start(encrypted);
  for (const key of world.keys("index/")) world.store.objects.delete(key);
  const { actions, report } = await world.repair();
  expect(actions).toEqual([expect.stringMatching(/^write index\/web\//)]);
  expect(report.problems).toEqual([]);
  const listed: string[] = [];
  for (const key of world.keys("index/")) {
    for (const { ref } of await readIndexObject(world.backups.repository, key, never))
      listed.push(packKey(ref.pack));
  }
  expect(listed.sort()).toEqual(world.keys("packs/").sort());
  expect(await world.backupElsewhere(), "all are duplicates").toBe(0);
  expect((await world.backups.verify()).problems).toEqual([]);
  expect((await world.repair()).actions, "once is enough").toEqual([]);
});

test("what a prune has condemned is not entered again", async () => {
  const world = await World.start();
  for (const key of world.keys("index/")) world.store.objects.delete(key);
  const { repository } = world.backups;
  const [condemned, ...others] = world.keys("packs/");
  const prune = newUuid();
  const packs = [condemned!.slice("packs/".length)];
  const since = new Date().toISOString();
  const home = repository.config.repository;
  const key = condemnedKey(prune);
  const record = { format: 1, repository: home, prune, since, packs, layers: [] } as const;
  await world.store.put(key, encodeCondemned(repository, key, record), never);
  await world.repair();
  const listed: string[] = [];
  for (const one of world.keys("index/")) {
    for (const { pack } of await readIndexObject(repository, one, never)) listed.push(packKey(pack));
  }
  expect(listed.sort()).toEqual(others.sort());
});

test("without a repair a lost index costs uploads: what the test above proves", async () => {
  const world = await World.start();
  for (const key of world.keys("index/")) world.store.objects.delete(key);
  expect(await world.backupElsewhere()).toBe(CONTENTS.length);
});

test("an index object that is damaged goes when its packs are listed by another", async () => {
  const world = await World.start();
  const [bad] = world.keys("index/");
  world.store.bytes(bad!)[30]! ^= 1;
  const dry = await world.repair({ dryRun: true });
  expect(dry.actions).toEqual(["write index/web/", `remove ${bad}`]);
  expect(world.store.objects.has(bad!)).toBe(true);
  const { actions, report } = await world.repair();
  expect(actions).toEqual([expect.stringMatching(/^write index\/web\/./), `remove ${bad}`]);
  expect(report.problems).toEqual([]);
  expect(await world.backupElsewhere()).toBe(0);
});

test.each(SEALINGS)(
  "a record of slots that are right is taken back; of a bad one it stays ($name)",
  async ({ encrypted }) => {
    const world = await World.start(encrypted);
    const [good, bad] = world.keys("packs/").map((key) => key.slice("packs/".length));
    await recordDamaged(world.backups.repository, good!, [0, 1], never);
    world.store.bytes(packKey(bad!))[20]! ^= 1;
    await recordDamaged(world.backups.repository, bad!, [0, 1], never);
    const { actions, report } = await world.repair();
    expect(actions).toEqual([expect.stringMatching(`^remove damaged/${good}/`)]);
    expect([...(await readDamaged(world.backups.repository, never)).keys()]).toEqual([bad]);
    expect(report.losses.length).toBeGreaterThan(0);
  },
);

test.each(SEALINGS)(
  "a damaged record that is damaged itself: looked at again, recorded anew ($name)",
  async ({ encrypted }) => {
    const world = await World.start(encrypted);
    const pack = world.keys("packs/")[0]!.slice("packs/".length);
    world.store.bytes(packKey(pack))[20]! ^= 1;
    await recordDamaged(world.backups.repository, pack, [0], never);
    world.store.bytes(world.keys("damaged/")[0]!)[10]! ^= 1;
    await expect(world.backupElsewhere()).rejects.toMatchObject({ kind: "corrupt" });
    const { actions } = await world.repair();
    expect(actions).toEqual([`record packs/${pack}`, expect.stringMatching(`^remove damaged/${pack}/`)]);
    expect([...(await readDamaged(world.backups.repository, never)).get(pack)!]).toEqual([0]);
    expect(await world.backupElsewhere()).toBe(1);
  },
);

test("a hold that cannot be read is written anew, and holds at every moment", async () => {
  const world = await World.start();
  const [key] = world.keys("holds/");
  world.store.bytes(key!)[20]! ^= 1;
  const { actions, report } = await world.repair();
  expect(actions).toEqual([`rewrite ${key}`]);
  expect(report.problems).toEqual([]);
  const [hold] = [...(await loadHolds(world.backups.repository, undefined, never, () => undefined)).values()];
  expect(hold!.reason).toContain("held again by a repair");
});

test("records of runs, a condemned one and a ledger: kept for a day where they may matter, then removed", async () => {
  const world = await World.start();
  const { repository } = world.backups;
  await world.backups.verify();
  const prune = newUuid();
  const since = new Date().toISOString();
  const record = {
    format: 1,
    repository: repository.config.repository,
    prune,
    since,
    packs: [],
    layers: [],
  } as const;
  const key = condemnedKey(prune);
  await world.store.put(key, encodeCondemned(repository, key, record), never);
  const bad = [key, ...world.keys("runs/"), ...world.keys("checked/")];
  for (const one of bad) world.store.bytes(one)[20]! ^= 1;
  const early = await world.repair();
  expect(early.actions.filter((one) => one.startsWith("kept"))).toHaveLength(bad.length - 1);
  expect(early.actions).toContain(`remove ${world.keys("checked/")[0] ?? bad.at(-1)!}`);
  expect(early.report.problems).toHaveLength(bad.length - 1);
  world.aheadMs = RUN_GRACE_MS + 60_000;
  const late = await world.repair();
  expect(late.actions.sort()).toEqual(
    bad
      .slice(0, -1)
      .map((one) => `remove ${one}`)
      .sort(),
  );
  expect(late.report.problems).toEqual([]);
});

test("what is lost is told and recorded; a full backup is whole; nothing of it is touched", async () => {
  const world = await World.start();
  const [manifest, layer, pack] = [
    world.keys("generations/")[0]!,
    world.keys("layers/")[0]!,
    world.keys("packs/").at(-1)!,
  ];
  world.store.bytes(manifest)[50]! ^= 1;
  world.store.bytes(layer)[20]! ^= 1;
  world.store.objects.delete(pack);
  const before = world.keys("").filter((key) => !key.startsWith("damaged/"));
  const { report } = await world.repair({ readPercent: 100 });
  expect(world.keys("").filter((key) => !/^(damaged|checked)\//.test(key))).toEqual(before);
  expect(report.problems.map(({ message }) => message).join("\n")).toContain(manifest);
  expect(report.losses).toHaveLength(1);
  for await (const { pack: named } of damagedRecords(world.backups.repository, never))
    expect(packKey(named)).toBe(pack);
  world.store.objects.delete(manifest); // as `forget` by its id does
  const { manifest: next } = await world.backups.backup([diskOf(CONTENTS)], { full: true });
  expectSame(await world.backups.restore(next.disks[0]!), chunksOf(...CONTENTS));
});

test("a dry run writes nothing, whatever is wrong", async () => {
  const world = await World.start();
  const pack = world.keys("packs/")[0]!.slice("packs/".length);
  world.store.bytes(packKey(pack))[20]! ^= 1;
  await recordDamaged(world.backups.repository, pack, [0], never);
  for (const key of ["damaged/", "holds/", "index/", "runs/"].map((prefix) => world.keys(prefix)[0]!)) {
    world.store.bytes(key)[20]! ^= 1;
  }
  world.aheadMs = RUN_GRACE_MS + 60_000;
  const before = world.snapshot();
  const { actions } = await world.repair({ dryRun: true, readPercent: 100 });
  expect(actions.length).toBeGreaterThan(4);
  expect(world.snapshot()).toEqual(before);
});
