import { expect, test } from "vitest";
import { AppError } from "../../../src/errors.ts";
import { encodeForward } from "../../../src/repository/forward.ts";
import type { Manifest } from "../../../src/repository/manifest.ts";
import { forwardKey, newUuid, packKey } from "../../../src/repository/names.ts";
import type { PackDirectory } from "../../../src/repository/pack-reader.ts";
import { PackDirectories } from "../../../src/repository/pack-reader.ts";
import { diffDisks } from "../../../src/restore/diff.ts";
import { restoreDisk } from "../../../src/restore/restore-disk.ts";
import { verify } from "../../../src/upkeep/verify.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import { movePack, storedDirectoryOf, storeForward } from "../../support/moved-packs.ts";
import { MemoryTarget } from "../../support/scripted-disk.ts";
import { CHUNK, diskOf, expectSame, newBackups, numbers } from "../backup/chunks.ts";

const never = new AbortController().signal;
const quiet = (): void => undefined;
type TestBackups = Awaited<ReturnType<typeof newBackups>>;

/** A generation of three packs of four chunks, in the order of the disk. */
async function threePacks() {
  const backups = await newBackups({ packChunks: 5 });
  const disk = diskOf(numbers(1, 13));
  const { manifest } = await backups.backup([disk]);
  const packs = packsOf(backups);
  expect(packs).toHaveLength(3);
  return { backups, disk, manifest, packs };
}

function packsOf({ store }: TestBackups): string[] {
  const keys = [...store.objects.keys()].filter((key) => key.startsWith("packs/"));
  return keys.map((key) => key.slice("packs/".length));
}

function remove({ store }: TestBackups, pack: string): void {
  expect(store.objects.delete(packKey(pack)), pack).toBe(true);
}

/** The store of a run, and the LISTs of forwards that the run sent. */
function watched(
  { store }: TestBackups,
  before: (operation: string, key: string) => Promise<void> | void = quiet,
) {
  const lists: string[] = [];
  const hooked = new HookedStore(store, {
    before: async (operation, key) => {
      if (operation === "list" && key.startsWith("forwards/")) lists.push(key);
      await before(operation, key);
    },
  });
  return { store: hooked, lists };
}

async function restore(backups: TestBackups, manifest: Manifest, store: HookedStore): Promise<Buffer> {
  const [disk] = manifest.disks;
  const target = new MemoryTarget(disk!.size);
  await restoreDisk(disk!, target, backups.tools(store), new AbortController(), quiet);
  return target.bytes;
}

async function problemsOf(backups: TestBackups, percent: number) {
  const generations = await backups.generations();
  const rest = { found: [], complete: true, record: false, warn: quiet, progress: quiet };
  const request = { manifests: generations, readPercent: percent, ...rest };
  return await verify(request, backups.tools(), new AbortController());
}

test("nobody looks for forwards while nothing is missed", async () => {
  const { backups, disk, manifest, packs } = await threePacks();
  await movePack(backups.repository, packs[0]!);
  const { store, lists } = watched(backups);
  expectSame(await restore(backups, manifest, store), disk.bytes);
  expect(lists).toEqual([]);
});

test("packs that were rewritten are found with one LIST", async () => {
  const { backups, disk, manifest, packs } = await threePacks();
  for (const pack of packs) {
    await movePack(backups.repository, pack);
    remove(backups, pack);
  }
  const { store, lists } = watched(backups);
  expectSame(await restore(backups, manifest, store), disk.bytes);
  expect(lists).toEqual(["forwards/"]);
  expect(await problemsOf(backups, 100)).toMatchObject({ problems: [], chunks: 12, chunksRead: 12 });
});

test("a blob that moved comes with its neighbours in one GET", async () => {
  const { backups, disk, manifest, packs } = await threePacks();
  const { target } = await movePack(backups.repository, packs[1]!);
  // the same blobs once more, in the order of the disk
  const { target: second } = await movePack(backups.repository, target.pack);
  await storeForward(
    backups.repository,
    await directoryOf(backups, packs[1]!),
    [0, 1, 2, 3].map((slot) => ({ slot, target: second.ref, to: slot })),
  );
  for (const key of [...backups.store.objects.keys()])
    if (key.startsWith(`forwards/${target.pack}/`)) backups.store.objects.delete(key);
  remove(backups, packs[1]!);
  remove(backups, target.pack);
  const ranges: string[] = [];
  const { store } = watched(backups, (operation, key) => {
    if (operation === "getRange") ranges.push(key);
  });
  expectSame(await restore(backups, manifest, store), disk.bytes);
  expect(ranges.filter((key) => key === packKey(second.pack))).toHaveLength(1);
});

async function directoryOf({ repository }: TestBackups, pack: string): Promise<PackDirectory> {
  return await new PackDirectories(repository, { cacheBytes: 0 }).load(pack, never);
}

test("a restore whose pack is rewritten in the middle goes on", async () => {
  const { backups, disk, manifest, packs } = await threePacks();
  let moved = false;
  const { store, lists } = watched(backups, async (operation, key) => {
    if (moved || operation !== "getRange" || key !== packKey(packs[1]!)) return;
    moved = true; // its directory has been read: it goes between that and the blobs
    await movePack(backups.repository, packs[1]!);
    remove(backups, packs[1]!);
  });
  expectSame(await restore(backups, manifest, store), disk.bytes);
  expect(moved).toBe(true);
  expect(lists).toEqual(["forwards/"]);
});

test("a restore that knows the forwards and misses a pack that was rewritten since lists again", async () => {
  const { backups, disk, manifest, packs } = await threePacks();
  const first = await movePack(backups.repository, packs[0]!);
  remove(backups, packs[0]!);
  let moves = 0;
  const { store, lists } = watched(backups, async (operation, key) => {
    if (operation !== "getRange") return;
    if (moves === 0 && key === packKey(first.target.pack)) {
      moves = 1; // the target itself, between its directory and its blobs
      await movePack(backups.repository, first.target.pack);
      remove(backups, first.target.pack);
    } else if (moves === 1 && key === packKey(packs[2]!)) {
      moves = 2;
      await movePack(backups.repository, packs[2]!);
      remove(backups, packs[2]!);
    }
  });
  expectSame(await restore(backups, manifest, store), disk.bytes);
  expect(moves).toBe(2);
  expect(lists[0]).toBe("forwards/");
  expect(lists.slice(1).sort()).toEqual([`forwards/${packs[2]!}/`, `forwards/${first.target.pack}/`].sort());
});

test("chains of forwards are followed to their end", async () => {
  const { backups, disk, manifest, packs } = await threePacks();
  let pack = packs[0]!;
  for (let link = 0; link < 4; link++) {
    const { target } = await movePack(backups.repository, pack);
    remove(backups, pack);
    pack = target.pack;
  }
  const { store } = watched(backups);
  expectSame(await restore(backups, manifest, store), disk.bytes);
});

test("several forwards of one pack each know some of its slots", async () => {
  const { backups, disk, manifest, packs } = await threePacks();
  for (const slots of [[0], [1, 3], [1, 2]]) await movePack(backups.repository, packs[0]!, slots);
  remove(backups, packs[0]!);
  const { store } = watched(backups);
  expectSame(await restore(backups, manifest, store), disk.bytes);
  expect(await problemsOf(backups, 0)).toMatchObject({ problems: [] });
});

test("a damaged forward, or one that leads nowhere, is no harm while another covers its slots", async () => {
  const { backups, disk, manifest, packs } = await threePacks();
  const moved = [];
  for (let copy = 0; copy < 3; copy++) moved.push(await movePack(backups.repository, packs[0]!));
  remove(backups, packs[0]!);
  backups.store.bytes(forwardKey(packs[0]!, moved[0]!.forward))[40]! ^= 1;
  remove(backups, moved[1]!.target.pack);
  const { store } = watched(backups);
  expectSame(await restore(backups, manifest, store), disk.bytes);
  backups.store.bytes(forwardKey(packs[0]!, moved[2]!.forward))[40]! ^= 1;
  await expect(restore(backups, manifest, store)).rejects.toMatchObject({ kind: "corrupt" });
});

test("a pack that is gone without a forward fails by its name, after a second look", async () => {
  const { backups, manifest, packs } = await threePacks();
  remove(backups, packs[1]!);
  const { store, lists } = watched(backups);
  await expect(restore(backups, manifest, store)).rejects.toMatchObject({
    code: "E_PACK_MISSING",
    context: { pack: packs[1]! },
  });
  expect(lists).toEqual(["forwards/", `forwards/${packs[1]!}/`]);
});

test("a slot that no forward knows is lost, and verify finds that without reading data", async () => {
  const { backups, manifest, packs } = await threePacks();
  await movePack(backups.repository, packs[1]!, [0, 1, 3]);
  remove(backups, packs[1]!);
  const { store } = watched(backups);
  await expect(restore(backups, manifest, store)).rejects.toMatchObject({ code: "E_PACK_MISSING" });
  const { problems } = await problemsOf(backups, 0);
  expect(problems).toEqual([expect.objectContaining({ code: "E_PACK_MISSING" })]);
});

test("a ring of forwards ends", async () => {
  const { backups, manifest, packs } = await threePacks();
  const { old, target } = await movePack(backups.repository, packs[0]!);
  await storeForward(
    backups.repository,
    target,
    numbers(0, 4).map((slot) => ({ slot, target: old.ref, to: slot })),
  );
  remove(backups, packs[0]!);
  remove(backups, target.pack);
  const { store } = watched(backups);
  await expect(restore(backups, manifest, store)).rejects.toMatchObject({ code: "E_FORWARD" });
});

test("R10: a forward whose directory is not the one the layer names cannot pass off other chunks", async () => {
  const { backups, manifest, packs } = await threePacks();
  const { repository } = backups;
  // Four chunks of another pack, described truly: only the layer's digest tells that they are not those of the first.
  const other = await directoryOf(backups, packs[2]!);
  const old = await directoryOf(backups, packs[0]!);
  const storedDirectory = await storedDirectoryOf(repository, other);
  const key = forwardKey(packs[0]!, newUuid());
  const moves = numbers(0, 4).map((slot) => ({ slot, target: other.ref, to: slot }));
  const forged = encodeForward(
    repository,
    key,
    { directory: Object.create(other, { pack: { value: packs[0]! } }) as PackDirectory, storedDirectory },
    moves,
  );
  await repository.store.put(key, forged, never);
  remove(backups, old.pack);
  const { store } = watched(backups);
  await expect(restore(backups, manifest, store)).rejects.toMatchObject({ code: "E_FORWARD" });
  expect((await problemsOf(backups, 0)).problems).toEqual([expect.objectContaining({ code: "E_FORWARD" })]);
});

test("R10: a new pack is only a place: it must hold the very blob that the old directory describes", async () => {
  const { backups, manifest, packs } = await threePacks();
  const old = await directoryOf(backups, packs[0]!);
  const { target } = await movePack(backups.repository, packs[1]!);
  await storeForward(
    backups.repository,
    old,
    numbers(0, 4).map((slot) => ({ slot, target: target.ref, to: slot })),
  );
  remove(backups, packs[0]!);
  const { store } = watched(backups);
  const restoring = restore(backups, manifest, store);
  await expect(restoring).rejects.toMatchObject({ code: "E_FORWARD" });
  expect((await problemsOf(backups, 0)).problems).toHaveLength(1);
});

test("R10: a new pack's directory is held against the forward's digest", async () => {
  const { backups, manifest, packs } = await threePacks();
  const { old, target } = await movePack(backups.repository, packs[0]!);
  const stranger = { ...target.ref, digest: Buffer.alloc(32, 1) };
  backups.store.objects.delete([...backups.store.objects.keys()].find((key) => key.startsWith("forwards/"))!);
  await storeForward(
    backups.repository,
    old,
    numbers(0, 4).map((slot) => ({ slot, target: stranger, to: 3 - slot })),
  );
  remove(backups, packs[0]!);
  const { store } = watched(backups);
  await expect(restore(backups, manifest, store)).rejects.toMatchObject({ code: "E_PACK_DIRECTORY" });
});

test("damage in the new pack is told by its name and slot", async () => {
  const { backups, manifest, packs } = await threePacks();
  const { target } = await movePack(backups.repository, packs[0]!);
  remove(backups, packs[0]!);
  backups.store.bytes(packKey(target.pack))[target.offsetOf(2) + 100]! ^= 1;
  const { store } = watched(backups);
  await expect(restore(backups, manifest, store)).rejects.toMatchObject({
    kind: "corrupt",
    context: { pack: target.pack, slot: 2 },
  });
});

test("generations are compared through forwards", async () => {
  const { backups, manifest, packs } = await threePacks();
  const { manifest: other } = await backups.backup([diskOf([...numbers(1, 9), 20, ...numbers(10, 13)])], {
    source: "db",
    scope: "off",
  });
  for (const pack of packs) {
    await movePack(backups.repository, pack);
    remove(backups, pack);
  }
  const ranges = [];
  for await (const range of diffDisks(manifest.disks[0]!, other.disks[0]!, backups.tools(), never))
    ranges.push(range);
  expect(ranges).toEqual([{ offset: 8 * CHUNK, length: CHUNK }]);
});

test("an abort ends the search for forwards with its reason", async () => {
  const { backups, manifest, packs } = await threePacks();
  remove(backups, packs[0]!);
  const run = new AbortController();
  const reason = new AppError("cancelled", "E_INTERRUPTED", "Interrupted");
  const { store } = watched(backups, (operation, key) => {
    if (operation === "list" && key.startsWith("forwards/")) run.abort(reason);
  });
  const target = new MemoryTarget(12 * CHUNK);
  const restoring = restoreDisk(manifest.disks[0]!, target, backups.tools(store), run, quiet);
  await expect(restoring).rejects.toBe(reason);
});
