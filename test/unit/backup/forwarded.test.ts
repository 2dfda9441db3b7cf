import { expect, test } from "vitest";
import { encodeCondemned } from "../../../src/repository/condemned.ts";
import { recordDamaged } from "../../../src/repository/damaged.ts";
import { DiskMap } from "../../../src/repository/layer-stack.ts";
import type { Manifest } from "../../../src/repository/manifest.ts";
import { condemnedKey, newUuid, packKey } from "../../../src/repository/names.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import { movePack } from "../../support/moved-packs.ts";
import { diskOf, expectSame, newBackups, numbers, unchangedDisk } from "./chunks.ts";

const never = new AbortController().signal;
type TestBackups = Awaited<ReturnType<typeof newBackups>>;

const CONTENTS = numbers(1, 13);

/** A generation of three packs of four chunks. */
async function threePacks() {
  const backups = await newBackups({ packChunks: 5 });
  const { manifest } = await backups.backup([diskOf(CONTENTS)]);
  const keys = [...backups.store.objects.keys()].filter((key) => key.startsWith("packs/"));
  return { backups, manifest, packs: keys.map((key) => key.slice("packs/".length)) };
}

async function condemn(
  { repository, store }: TestBackups,
  packs: readonly string[],
  forwards: readonly string[] = [],
): Promise<void> {
  const prune = newUuid();
  const key = condemnedKey(prune);
  const since = new Date().toISOString();
  const { repository: home } = repository.config;
  const record = { format: 1, repository: home, prune, since, packs, layers: [], forwards } as const;
  await store.put(key, encodeCondemned(repository, key, record), never);
}

async function packsNamed({ repository }: TestBackups, manifest: Manifest): Promise<Set<string>> {
  const map = await DiskMap.open(repository, manifest.disks[0]!, never);
  const named = new Set<string>();
  for await (const { where } of map.runs(0, map.chunks, never))
    if (where !== "zero") named.add(where.packRef.pack);
  return named;
}

test.each([
  ["an incremental", true, false],
  ["an incremental, the packs being gone", true, true],
  ["a rescan", false, false],
  ["a rescan, the packs being gone", false, true],
])("R2: %s after a prune does not store again what forwards cover", async (_, incremental, gone) => {
  const { backups, manifest: parent, packs } = await threePacks();
  for (const pack of packs) await movePack(backups.repository, pack);
  await condemn(backups, packs);
  if (gone) for (const pack of packs) backups.store.objects.delete(packKey(pack));
  const options = incremental ? { bitmap: "b0", parent: parent.generation } : {};
  const disk = incremental ? unchangedDisk(CONTENTS) : diskOf(CONTENTS);
  const { manifest, stats } = await backups.backup([disk], options);
  expect(stats).toMatchObject({ chunksStored: 0, chunksDeduplicated: 0 });
  expect(manifest.disks[0]!.layers).toEqual(parent.disks[0]!.layers);
  expect(backups.warnings).toEqual([]);
  expectSame(await backups.restore(manifest.disks[0]!), disk.bytes);
});

test.each([
  ["an incremental", true],
  ["a rescan", false],
])("R2: %s stores again what no forward covers, and that alone", async (_, incremental) => {
  const { backups, manifest: parent, packs } = await threePacks();
  await movePack(backups.repository, packs[0]!, [0, 1]);
  await movePack(backups.repository, packs[0]!, [3]);
  await movePack(backups.repository, packs[1]!);
  await condemn(backups, packs.slice(0, 2));
  for (const pack of packs.slice(0, 2)) backups.store.objects.delete(packKey(pack));
  const options = incremental ? { bitmap: "b0", parent: parent.generation } : {};
  const disk = incremental ? unchangedDisk(CONTENTS) : diskOf(CONTENTS);
  const { manifest, stats } = await backups.backup([disk], options);
  expect(stats).toMatchObject({ chunksStored: 1 });
  expectSame(await backups.restore(manifest.disks[0]!), disk.bytes);
  expect((await backups.verify()).problems, "the parent has lost a chunk").not.toEqual([]);
});

test("R2: a prune that condemns at the moment of the commit what its forwards cover needs no repair", async () => {
  const { backups, manifest: parent, packs } = await threePacks();
  let done = false;
  const store = new HookedStore(backups.store, {
    after: async (operation, key) => {
      if (done || operation !== "put" || !key.startsWith("generations/")) return;
      done = true;
      await movePack(backups.repository, packs[0]!);
      await movePack(backups.repository, packs[1]!, [0, 1, 2]);
      await condemn(backups, packs.slice(0, 2));
    },
  });
  const disk = unchangedDisk(CONTENTS);
  const report = await backups.backup([disk], { bitmap: "b0", parent: parent.generation, store });
  expect(report.manifest.reason).toMatch(/^repairs generation/);
  expect(report.stats.chunksStored).toBe(1); // slot 3 of the second pack
  for (const pack of packs.slice(0, 2)) backups.store.objects.delete(packKey(pack));
  expectSame(await backups.restore(report.manifest.disks[0]!), disk.bytes);
});

test("R2: a forward into a pack that is condemned itself covers nothing, but through a forward of that one", async () => {
  const { backups, manifest: parent, packs } = await threePacks();
  const first = await movePack(backups.repository, packs[0]!);
  const second = await movePack(backups.repository, packs[1]!);
  await movePack(backups.repository, second.target.pack, [1, 2, 3]);
  const condemned = [packs[0]!, packs[1]!, first.target.pack, second.target.pack];
  await condemn(backups, condemned);
  for (const pack of condemned) backups.store.objects.delete(packKey(pack));
  const disk = unchangedDisk(CONTENTS);
  const { manifest, stats } = await backups.backup([disk], { bitmap: "b0", parent: parent.generation });
  expect(stats.chunksStored).toBe(4 + 1); // the second's slot 3 lies in slot 0 of its target
  expectSame(await backups.restore(manifest.disks[0]!), disk.bytes);
});

test("R2: a forward that is condemned itself covers nothing", async () => {
  const { backups, manifest: parent, packs } = await threePacks();
  const { forward } = await movePack(backups.repository, packs[0]!);
  await condemn(backups, [packs[0]!], [forward]);
  const disk = unchangedDisk(CONTENTS);
  const { stats } = await backups.backup([disk], { bitmap: "b0", parent: parent.generation });
  expect(stats.chunksStored).toBe(4);
});

test("R12: damage in the new pack has the chunks of the old one stored again", async () => {
  const { backups, manifest: parent, packs } = await threePacks();
  const { target } = await movePack(backups.repository, packs[0]!);
  backups.store.objects.delete(packKey(packs[0]!));
  await recordDamaged(backups.repository, target.pack, [0], never);
  backups.store.bytes(packKey(target.pack))[target.offsetOf(0) + 5]! ^= 1;
  const disk = unchangedDisk(CONTENTS);
  const { manifest, stats } = await backups.backup([disk], { bitmap: "b0", parent: parent.generation });
  expect(stats.chunksStored).toBe(1);
  expectSame(await backups.restore(manifest.disks[0]!), disk.bytes);
});

test("R8: a hit in a pack that is gone is refused, forwards or not", async () => {
  const { backups, packs } = await threePacks();
  for (const pack of packs) {
    await movePack(backups.repository, pack);
    backups.store.objects.delete(packKey(pack)); // while an index object still lists it
  }
  const { manifest, stats } = await backups.backup([diskOf(CONTENTS)], { source: "db" });
  expect(stats).toMatchObject({ chunksStored: 12, chunksDeduplicated: 0 });
  for (const pack of packs) expect(await packsNamed(backups, manifest)).not.toContain(pack);
});

test("R8: nor by a rescan that read the parent's directory out of a forward", async () => {
  const { backups, packs } = await threePacks();
  for (const pack of packs) {
    await movePack(backups.repository, pack);
    backups.store.objects.delete(packKey(pack));
  }
  const moved = [...numbers(7, 13), ...numbers(1, 7)]; // every chunk is known, at another place
  const { manifest, stats } = await backups.backup([diskOf(moved)]);
  expect(stats).toMatchObject({ chunksStored: 12, chunksDeduplicated: 0 });
  for (const pack of packs) expect(await packsNamed(backups, manifest)).not.toContain(pack);
});

test("a rescan does not call unchanged what no forward leads to", async () => {
  const { backups, packs } = await threePacks();
  await movePack(backups.repository, packs[0]!, [0, 1, 2]);
  backups.store.objects.delete(packKey(packs[0]!)); // and nobody says that it was condemned
  await expect(backups.backup([diskOf(CONTENTS)])).rejects.toMatchObject({ code: "E_PACK_MISSING" });
});
