import { expect, test } from "vitest";
import type { BackupReport } from "../../../src/backup/request.ts";
import { encodeCondemned } from "../../../src/repository/condemned.ts";
import type { ManifestDisk } from "../../../src/repository/manifest.ts";
import { condemnedKey, layerKey, newUuid, packKey } from "../../../src/repository/names.ts";
import { FaultyStore } from "../../support/faulty-store.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import type { ScriptedDisk } from "../../support/scripted-disk.ts";
import { diskOf, expectSame, newBackups, numbers, unchangedDisk } from "./chunks.ts";

const never = new AbortController().signal;
type TestBackups = Awaited<ReturnType<typeof newBackups>>;

/** What a prune would write. */
async function condemn(
  backups: TestBackups,
  packs: readonly string[],
  layers: readonly string[],
): Promise<void> {
  const { repository, store } = backups;
  const prune = newUuid();
  const key = condemnedKey(prune);
  const since = new Date().toISOString();
  const home = repository.config.repository;
  const record = { format: 1, repository: home, prune, since, packs, layers } as const;
  await store.put(key, encodeCondemned(repository, key, record), never);
}

function namesUnder(backups: TestBackups, prefix: string): string[] {
  return [...backups.store.objects.keys()]
    .filter((key) => key.startsWith(prefix))
    .map((key) => key.slice(prefix.length));
}

/** The store of a run during which a prune condemns something at the moment of the (first) commit. */
function atCommit(backups: TestBackups, work: () => Promise<void>): HookedStore {
  let done = false;
  return new HookedStore(backups.store, {
    after: async (operation, key) => {
      if (done || operation !== "put" || !key.startsWith("generations/")) return;
      done = true;
      await work();
    },
  });
}

async function expectRestores(backups: TestBackups, report: BackupReport, disk: ScriptedDisk): Promise<void> {
  const generations = await backups.generations();
  expect(generations.at(-1)!.generation).toBe(report.manifest.generation);
  expectSame(await backups.restore(generations.at(-1)!.disks[0]!), disk.bytes);
}

function layersOf(disk: ManifestDisk): string[] {
  return disk.layers.map(({ layer }) => layer);
}

test("R1: packs condemned at the moment of the commit are made up for by a repaired generation", async () => {
  const backups = await newBackups({ packChunks: 4 });
  const contents = numbers(1, 13);
  const { manifest: parent } = await backups.backup([diskOf(contents)]);
  const packs = namesUnder(backups, "packs/").slice(0, 2);
  const disk = unchangedDisk(contents);
  const store = atCommit(backups, () => condemn(backups, packs, []));
  const report = await backups.backup([disk], { bitmap: "b0", parent: parent.generation, store });
  expect((await backups.generations()).map(({ sequence }) => sequence)).toEqual([1, 2, 3]);
  expect(report.manifest.reason).toMatch(/^repairs generation .*: a prune condemned what it used$/);
  expect(backups.warnings).toEqual([expect.stringContaining("storing them again")]);
  expect(backups.closed).toEqual(["committed", "committed"]);
  for (const pack of packs) backups.store.objects.delete(packKey(pack));
  await expectRestores(backups, report, disk);
  // the next run is in no trouble either
  await expectRestores(backups, await backups.backup([diskOf(contents)]), disk);
});

test("R1: a layer condemned at the moment of the commit is made up for by a repaired generation", async () => {
  const backups = await newBackups();
  const contents = numbers(1, 9);
  const { manifest: parent } = await backups.backup([diskOf(contents)]);
  const [condemned] = layersOf(parent.disks[0]!);
  const disk = unchangedDisk(contents);
  const store = atCommit(backups, () => condemn(backups, [], [condemned!]));
  const report = await backups.backup([disk], { bitmap: "b0", parent: parent.generation, store });
  expect(layersOf(report.manifest.disks[0]!)).not.toContain(condemned);
  backups.store.objects.delete(layerKey(condemned!));
  await expectRestores(backups, report, disk);
});

test("R1: what is condemned before the run begins is not used, by dedup neither", async () => {
  const backups = await newBackups({ packChunks: 4 });
  await backups.backup([diskOf(numbers(1, 9))]);
  const packs = namesUnder(backups, "packs/");
  await condemn(backups, packs, []);
  const disk = diskOf(numbers(1, 9));
  const rescan = await backups.backup([disk]);
  const other = await backups.backup([diskOf(numbers(1, 5))], { source: "db", full: true });
  for (const pack of packs) backups.store.objects.delete(packKey(pack));
  expectSame(await backups.restore(rescan.manifest.disks[0]!), disk.bytes);
  expectSame(await backups.restore(other.manifest.disks[0]!), diskOf(numbers(1, 5)).bytes);
  expect(rescan.manifest.reason, "no repair was needed").toMatch(/^no dirty bitmap/);
});

test.each([
  ["a rescan", false, false],
  ["a rescan, the packs being gone", false, true],
  ["an incremental", true, false],
  ["an incremental, the packs being gone", true, true],
])(
  "R1: a run that died between commit and check is repaired by the next: %s",
  async (_, incremental, gone) => {
    const backups = await newBackups({ packChunks: 4 });
    const contents = numbers(1, 13);
    await backups.backup([diskOf(contents)], { source: "db" });
    const packs = namesUnder(backups, "packs/").slice(0, 2);
    const store = new FaultyStore(
      atCommit(backups, () => condemn(backups, packs, [])),
      { operation: "list", key: /^condemned/, kind: "before", skip: 1 },
    );
    await expect(backups.backup([diskOf(contents)], { store })).rejects.toMatchObject({ code: "E_STORE" });
    store.assertAllHit();
    if (gone) for (const pack of packs) backups.store.objects.delete(packKey(pack));
    const parent = (await backups.generations()).find(({ source }) => source === "web")!;
    const disk = incremental ? unchangedDisk(contents) : diskOf(contents);
    const report = await backups.backup(
      [disk],
      incremental ? { bitmap: "b0", parent: parent.generation } : {},
    );
    for (const pack of packs) backups.store.objects.delete(packKey(pack));
    await expectRestores(backups, report, disk);
    expect(report.stats.chunksUnchanged + report.stats.chunksStored).toBeLessThanOrEqual(contents.length);
  },
);

test("R1: prunes that get in the way again and again end the run with a word about it", async () => {
  const backups = await newBackups({ packChunks: 4 });
  const store = new HookedStore(backups.store, {
    after: async (operation, key) => {
      if (operation === "put" && key.startsWith("generations/")) {
        await condemn(backups, namesUnder(backups, "packs/"), []);
      }
    },
  });
  await expect(backups.backup([diskOf(numbers(1, 5))], { store })).rejects.toMatchObject({
    code: "E_CONDEMNED",
  });
});
