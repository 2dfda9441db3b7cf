import { expect, test } from "vitest";
import { AppError } from "../../../src/errors.ts";
import { readDamaged } from "../../../src/repository/damaged.ts";
import type { Manifest } from "../../../src/repository/manifest.ts";
import { generationKey, layerKey } from "../../../src/repository/names.ts";
import { adviceOn } from "../../../src/upkeep/verify/advice.ts";
import { Losses } from "../../../src/upkeep/verify/losses.ts";
import { FaultyStore } from "../../support/faulty-store.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import { testManifest } from "../../support/manifests.ts";
import { seeded } from "../../support/seeded.ts";
import { CHUNK, diskOf, expectSame, newBackups, numbers, unchangedDisk } from "../backup/chunks.ts";

const never = new AbortController().signal;
type TestBackups = Awaited<ReturnType<typeof newBackups>>;

function keysUnder({ store }: TestBackups, prefix: string): string[] {
  return [...store.objects.keys()].filter((key) => key.startsWith(prefix));
}

/** Twelve chunks in packs of few, the third one's blob flipped. */
async function withBadChunk(): Promise<{ backups: TestBackups; pack: string }> {
  const backups = await newBackups({ packChunks: 8 });
  await backups.backup([diskOf(numbers(1, 13))]);
  const pack = keysUnder(backups, "packs/").find(
    (key) => backups.store.bytes(key).indexOf(diskOf([3]).bytes) > 0,
  )!;
  backups.store.bytes(pack)[backups.store.bytes(pack).indexOf(diskOf([3]).bytes) + 77]! ^= 1;
  return { backups, pack: pack.slice("packs/".length) };
}

function lossesOf(report: { losses: readonly { generation: string; ranges: unknown }[] }): unknown[] {
  return report.losses.map(({ generation, ranges }) => ({ generation, ranges }));
}

const TEMPLATE = testManifest("2026-11-22T03:00:00Z");
const THIRD = [{ offset: 2 * CHUNK, length: CHUNK }];

test("a bad chunk: the range of every generation that uses it, and one record of it", async () => {
  const { backups, pack } = await withBadChunk();
  await backups.backup([diskOf([...numbers(1, 12), 40])]);
  const [first, second] = await backups.generations();
  const report = await backups.verify();
  expect(lossesOf(report)).toEqual([
    { generation: first!.generation, ranges: THIRD },
    { generation: second!.generation, ranges: THIRD },
  ]);
  expect(report).toMatchObject({ slotsBad: 1, slotsRecorded: 1, transient: 0 });
  const known = await readDamaged(backups.repository, never);
  expect([...known.keys()]).toEqual([pack]);
  expect(known.get(pack)!.size).toBe(1);

  // known: without reading data it is told all the same, and never recorded twice
  const again = await backups.verify();
  const chain = await backups.verify({ readPercent: 0 });
  expect([again.slotsRecorded, chain.slotsRecorded]).toEqual([0, 0]);
  expect(lossesOf(chain)).toEqual(lossesOf(report));
  expect(chain.problems[0]!.message).toContain(`${pack} is recorded as damaged at 1`);
  expect(keysUnder(backups, "damaged/")).toHaveLength(1);
});

test.each([
  ["a rescan", false],
  ["an incremental", true],
])(
  "R12: after verify %s of the unchanged disk stores the chunk again, and is whole",
  async (_, incremental) => {
    const { backups } = await withBadChunk();
    const [old] = await backups.generations();
    const before = await backups.verify();
    expect(before.advice.join()).toContain("web: the next backup stores anew");
    const contents = numbers(1, 13);
    const report = incremental
      ? await backups.backup([unchangedDisk(contents)], { bitmap: "b0", parent: old!.generation })
      : await backups.backup([diskOf(contents)]);
    expect(report.stats.chunksStored).toBe(1);
    const newest = (await backups.generations()).at(-1)!;
    expectSame(await backups.restore(newest.disks[0]!), diskOf(contents).bytes);
    // the old one names the bad slot for ever
    const after = await backups.verify();
    expect(lossesOf(after)).toEqual([{ generation: old!.generation, ranges: THIRD }]);
    expect(after.advice.join()).toContain("web: its newest generation is whole");
    await expect(backups.restore(old!.disks[0]!)).rejects.toMatchObject({ kind: "corrupt" });
  },
);

test("a pack that is gone: all its used slots are lost and recorded, and the next backup is whole", async () => {
  const backups = await newBackups({ packChunks: 8 });
  await backups.backup([diskOf(numbers(1, 13))]);
  const [gone] = keysUnder(backups, "packs/");
  const slots = backups.store.bytes(gone!).readUInt32LE(backups.store.bytes(gone!).length - 52);
  backups.store.objects.delete(gone!);
  const report = await backups.verify({ readPercent: 0 });
  expect(report).toMatchObject({ slotsBad: slots, slotsRecorded: slots });
  expect(report.losses[0]!.bytes).toBe(slots * CHUNK);
  await backups.backup([diskOf(numbers(1, 13))]);
  const newest = (await backups.generations()).at(-1)!;
  expectSame(await backups.restore(newest.disks[0]!), diskOf(numbers(1, 13)).bytes);
});

test.each([
  ["a layer", "getTail", /^layers/, 0],
  ["a pack's directory", "getTail", /^packs/, 0],
  ["a blob", "getRange", /^packs/, 1],
] as const)("%s that is read wrongly once is not damaged", async (_, operation, key, skip) => {
  const backups = await newBackups();
  await backups.backup([diskOf(numbers(1, 13))]);
  const store = new FaultyStore(backups.store, { operation, key, skip, kind: "corrupt" });
  const report = await backups.verify({ store });
  store.assertAllHit();
  expect(report.problems).toEqual([]);
  expect(report.losses).toEqual([]);
  expect(keysUnder(backups, "damaged/")).toEqual([]);
  expect(report.chunksRead).toBe(12);
});

test("a credential that may only read: findings stand, and a warning says what was not done", async () => {
  const { backups } = await withBadChunk();
  const error = new AppError("credentials", "E_ACCESS", "no right to write");
  const store = new FaultyStore(backups.store, { operation: "put", key: /^damaged/, kind: "before", error });
  const report = await backups.verify({ store });
  store.assertAllHit();
  expect(report).toMatchObject({ slotsBad: 1, slotsRecorded: 0 });
  expect(report.losses).toHaveLength(1);
  expect(backups.warnings.join()).toContain("no right to write");
});

test("a lost layer costs what the layers above it do not mention", async () => {
  const backups = await newBackups({ packChunks: 8 });
  const contents = numbers(1, 200);
  await backups.backup([diskOf(contents)]);
  const changed = contents.map((seed, index) => (index === 5 || index === 6 ? 1000 + seed : seed));
  await backups.backup([diskOf(changed)]);
  const [first, second] = await backups.generations();
  expect(second!.disks[0]!.layers).toHaveLength(2);
  const bottom = layerKey(first!.disks[0]!.layers[0]!.layer);
  backups.store.objects.delete(bottom);
  const report = await backups.verify();
  const size = contents.length * CHUNK;
  expect(lossesOf(report)).toEqual([
    { generation: first!.generation, ranges: [{ offset: 0, length: size }] },
    {
      generation: second!.generation,
      ranges: [
        { offset: 0, length: 5 * CHUNK },
        { offset: 7 * CHUNK, length: size - 7 * CHUNK },
      ],
    },
  ]);
  expect(report.advice.join()).toContain("--full");
  expect(report.chunksRead).toBe(2); // of the layer above
  await backups.backup([diskOf(changed)], { full: true });
  const newest = (await backups.generations()).at(-1)!;
  expectSame(await backups.restore(newest.disks[0]!), diskOf(changed).bytes);
});

test("a generation that is forgotten, and its pack collected, while it is checked is no damage", async () => {
  const backups = await newBackups();
  await backups.backup([diskOf(numbers(1, 5))], { source: "db" });
  const [{ generation }] = (await backups.generations()) as [Manifest];
  const [pack] = keysUnder(backups, "packs/");
  const store = new HookedStore(backups.store, {
    before: (operation, key) => {
      if (operation !== "getTail" || key !== pack) return Promise.resolve();
      backups.store.objects.delete(generationKey("db", generation));
      backups.store.objects.delete(pack);
      return Promise.resolve();
    },
  });
  const report = await backups.verify({ store });
  expect(backups.store.objects.has(pack!)).toBe(false);
  expect(report.losses).toEqual([]);
  expect(report.problems).toEqual([]);
});

test("ranges of lost chunks, whatever the order they are found in, are those of a slow model", () => {
  for (let seed = 1; seed <= 500; seed++) {
    const random = seeded(seed);
    const chunks = 1 + random(40);
    const size = chunks * CHUNK - random(CHUNK);
    const disk = { ...TEMPLATE.disks[0]!, size, chunkSize: CHUNK };
    const manifest = { ...TEMPLATE, disks: [disk] };
    const losses = new Losses();
    const lost = new Set<number>();
    for (let adds = random(12); adds >= 0; adds--) {
      const first = random(chunks);
      const count = 1 + random(chunks - first);
      losses.add(manifest, disk, first, count);
      for (let chunk = first; chunk < first + count; chunk++) lost.add(chunk);
    }
    const [loss] = losses.list(() => true);
    const told = loss!.ranges.flatMap(({ offset, length }) => {
      expect(offset % CHUNK, `seed ${seed}`).toBe(0);
      return numbers(offset / CHUNK, Math.ceil((offset + length) / CHUNK));
    });
    expect(told, `seed ${seed}`).toEqual([...lost].sort((a, b) => a - b));
    const bytes = [...lost].reduce((sum, chunk) => sum + Math.min(CHUNK, size - chunk * CHUNK), 0);
    expect(loss!.bytes, `seed ${seed}`).toBe(bytes);
    expect(
      loss!.ranges.every(({ offset }, index, all) => {
        return index === 0 || all[index - 1]!.offset + all[index - 1]!.length < offset;
      }),
      `seed ${seed}: ranges touch`,
    ).toBe(true);
  }
});

test("ranges beyond the bound are counted, not kept", () => {
  const disk = { ...TEMPLATE.disks[0]!, size: 100 * CHUNK, chunkSize: CHUNK };
  const losses = new Losses(3);
  for (let chunk = 0; chunk < 20; chunk += 2) losses.add(TEMPLATE, disk, chunk, 1);
  const [loss] = losses.list(() => true);
  expect(loss).toMatchObject({ bytes: 10 * CHUNK, rangesLeftOut: 7 });
  expect(loss!.ranges).toHaveLength(3);
  expect(adviceOn([loss!], [TEMPLATE])).toHaveLength(1);
});
