import { beforeEach, expect, test } from "vitest";
import type { Repository } from "../../../src/repository/config.ts";
import { loadCondemned } from "../../../src/repository/condemned.ts";
import { generationKey, layerKey } from "../../../src/repository/names.ts";
import { Backups } from "../../support/backups.ts";
import { FaultyStore } from "../../support/faulty-store.ts";
import { temporaryFolder } from "../../support/folder.ts";
import { memoryRepository } from "../../support/memory-repository.ts";
import { DAY, HOUR, forgetThem, forward, runPrune, stopClock } from "../../support/prunes.ts";
import { CHUNK, diskOf, expectSame, newBackups, numbers, unchangedDisk } from "../backup/chunks.ts";

const never = new AbortController().signal;
type TestBackups = Awaited<ReturnType<typeof newBackups>>;

beforeEach(stopClock);

function keysOf(backups: TestBackups, ...prefixes: string[]): string[] {
  return [...backups.store.objects.keys()].filter((key) => prefixes.some((prefix) => key.startsWith(prefix)));
}

async function condemnedIn(repository: Repository): Promise<string[]> {
  const names: string[] = [];
  for await (const { packs, layers } of loadCondemned(repository, never)) names.push(...packs, ...layers);
  return names.sort();
}

function names(keys: readonly string[]): string[] {
  return keys.map((key) => key.split("/").at(-1)!).sort();
}

const bytesOf = (backups: TestBackups, keys: readonly string[]): number =>
  keys.reduce((sum, key) => sum + backups.store.bytes(key).length, 0);

/** Two fulls that share nothing, the first of which is forgotten. */
async function forgottenFull(
  backups: TestBackups,
): Promise<{ dead: string[]; live: string[]; bytes: number }> {
  const first = await backups.backup([diskOf(numbers(1, 9))], { full: true });
  const dead = keysOf(backups, "packs/", "layers/");
  forward(HOUR);
  await backups.backup([diskOf(numbers(21, 29))], { full: true });
  const live = keysOf(backups, "packs/", "layers/").filter((key) => !dead.includes(key));
  await forgetThem(backups.repository, "web", [first.manifest.generation]);
  return { dead, live, bytes: bytesOf(backups, dead) };
}

test("what nobody needs is condemned a grace after it was forgotten, and deleted a grace later", async () => {
  const backups = await newBackups({ packChunks: 4 });
  const { dead, live, bytes } = await forgottenFull(backups);
  const deadPacks = dead.filter((key) => key.startsWith("packs/")).length;

  forward(23 * HOUR); // old enough by itself, but it can still be brought back
  expect(await runPrune(backups.repository)).toMatchObject({
    generations: 1,
    forgotten: 1,
    condemned: { packs: 0, layers: 0, bytes: 0 },
    deleted: { packs: 0, layers: 0, bytes: 0 },
  });
  forward(2 * HOUR);
  const before = [...backups.store.objects.keys()].sort();
  const all = { packs: deadPacks, layers: 1, bytes };
  expect(await runPrune(backups.repository, { dryRun: true })).toMatchObject({
    dryRun: true,
    condemned: all,
  });
  expect([...backups.store.objects.keys()].sort(), "a dry run writes nothing").toEqual(before);
  expect(await runPrune(backups.repository)).toMatchObject({
    condemned: all,
    deleted: { packs: 0, layers: 0, bytes: 0 },
    tidied: { forgotten: 1 },
    indexesReplaced: 1,
  });
  expect(await condemnedIn(backups.repository)).toEqual(names(dead));
  expect(keysOf(backups, "packs/", "layers/").sort(), "nothing is deleted yet").toEqual(
    [...dead, ...live].sort(),
  );

  forward(23 * HOUR);
  expect(await runPrune(backups.repository)).toMatchObject({ waiting: all, deleted: { packs: 0 } });
  forward(2 * HOUR);
  expect(await runPrune(backups.repository, { dryRun: true })).toMatchObject({ deleted: all });
  const report = await runPrune(backups.repository);
  expect(report).toMatchObject({ deleted: all, condemned: { packs: 0 }, kept: { packs: 0 } });
  expect(keysOf(backups, "packs/", "layers/").sort()).toEqual(live.sort());
  expect(keysOf(backups, "forgotten/")).toEqual([]);
  const [generation] = await backups.generations();
  expectSame(await backups.restore(generation!.disks[0]!), diskOf(numbers(21, 29)).bytes);
  expect((await backups.verify()).problems).toEqual([]);

  expect(keysOf(backups, "condemned/"), "the record stays as a tombstone").toHaveLength(1);
  forward(5 * DAY);
  expect(await runPrune(backups.repository)).toMatchObject({ tidied: { condemned: 0 } });
  forward(3 * DAY);
  expect(await runPrune(backups.repository)).toMatchObject({ tidied: { condemned: 1 } });
  expect(keysOf(backups, "condemned/")).toEqual([]);
});

test("packs that other generations share stay, and what a slot of is used stays whole", async () => {
  const backups = await newBackups({ packChunks: 4 });
  const first = await backups.backup([diskOf(numbers(1, 13))]);
  const packs = keysOf(backups, "packs/");
  forward(HOUR);
  // one chunk of one of the packs, by dedup
  const other = await backups.backup([diskOf([2, 30])], { source: "db" });
  await forgetThem(backups.repository, "web", [first.manifest.generation]);
  for (let time = 0; time < 3; time++) {
    forward(25 * HOUR);
    await runPrune(backups.repository);
  }
  expect(packs.filter((key) => backups.store.objects.has(key))).toHaveLength(1);
  expectSame(await backups.restore(other.manifest.disks[0]!), diskOf([2, 30]).bytes);
});

test("an encrypted repository: its index is sealed anew, and what is left of it is found", async () => {
  const repository = memoryRepository({ encrypted: true, packSize: 4 * CHUNK, partSize: CHUNK });
  const backups = await Backups.start(repository);
  const { manifest } = await backups.backup([diskOf(numbers(1, 13))], { full: true });
  const other = await backups.backup([diskOf([2, 30])], { source: "db" });
  await forgetThem(repository, "web", [manifest.generation]);
  const deleted = [];
  for (let time = 0; time < 3; time++) {
    forward(25 * HOUR);
    const report = await runPrune(repository);
    if (time === 0) expect(report.indexesReplaced).toBe(1);
    deleted.push(report.deleted.packs);
  }
  expect(deleted).toEqual([0, 3, 0]);
  expectSame(await backups.restore(other.manifest.disks[0]!), diskOf([2, 30]).bytes);
  const cacheDir = await temporaryFolder(); // all it knows comes from the index
  const again = await backups.backup([diskOf([2, 30, 31])], { source: "new", cacheDir });
  expect(again.stats.chunksDeduplicated).toBe(2);
  expect(backups.warnings).toEqual([]);
  expect((await backups.verify()).problems).toEqual([]);
});

test("a stack of layers: each is read once, however many generations share it", async () => {
  const backups = await newBackups();
  const contents = numbers(1, 40);
  const first = await backups.backup([diskOf(contents)]);
  for (let time = 0; time < 5; time++) {
    forward(HOUR);
    await backups.backup([unchangedDisk(contents)], { bitmap: "b", parent: first.manifest.generation });
  }
  const layers = new Set(
    (await backups.generations()).flatMap(({ disks }) => disks[0]!.layers.map(({ layer }) => layer)),
  );
  expect((await runPrune(backups.repository)).layersRead).toBe(layers.size);
});

test("without anything to do nothing is written", async () => {
  const backups = await newBackups();
  await backups.backup([diskOf(numbers(1, 9))]);
  forward(2 * DAY);
  const before = [...backups.store.objects].map(([key, { bytes }]) => [key, bytes.toString("hex")]).sort();
  await runPrune(backups.repository);
  expect([...backups.store.objects].map(([key, { bytes }]) => [key, bytes.toString("hex")]).sort()).toEqual(
    before,
  );
});

test("keys of other forms and uploads that are not complete are left alone", async () => {
  const backups = await newBackups();
  await backups.backup([diskOf(numbers(1, 9))]);
  const foreign = ["packs/README", "packs/5F0C9A52-3d1b-4c7e-9e63-0b6a0f5d2c11", "layers/old/x", "notes.txt"];
  for (const key of foreign) await backups.store.put(key, Buffer.from("mine"), never);
  await backups.store.beginUpload("packs/5f0c9a52-3d1b-4c7e-9e63-0b6a0f5d2c11", never);
  for (let time = 0; time < 3; time++) {
    forward(2 * DAY);
    await runPrune(backups.repository);
  }
  expect(foreign.filter((key) => !backups.store.objects.has(key))).toEqual([]);
  expect(backups.store.uploads.size).toBe(1);
});

test.each(["manifest", "layer", "layer that is gone"])(
  "a damaged %s stops the prune before anything is condemned",
  async (kind) => {
    const backups = await newBackups({ packChunks: 4 });
    const { manifest } = await backups.backup([diskOf(numbers(1, 9))]);
    await forgottenFull(backups);
    forward(3 * DAY);
    const layer = layerKey(manifest.disks[0]!.layers[0]!.layer);
    const key = kind === "manifest" ? generationKey("web", manifest.generation) : layer;
    if (kind === "layer that is gone") backups.store.objects.delete(key);
    else backups.store.bytes(key)[20]! ^= 1;
    const before = keysOf(backups, "packs/", "layers/", "condemned/", "index/", "forgotten/");
    for (const dryRun of [true, false]) {
      await expect(runPrune(backups.repository, { dryRun })).rejects.toMatchObject({
        kind: "corrupt",
        code: "E_PRUNE_UNREADABLE",
        message: expect.stringMatching(
          kind === "manifest" ? manifest.generation : manifest.disks[0]!.layers[0]!.layer,
        ) as unknown,
      });
    }
    expect(keysOf(backups, "packs/", "layers/", "condemned/", "index/", "forgotten/")).toEqual(before);
    if (kind === "manifest") return;
    // what is lost is forgotten, as the message says, and the rest can be pruned
    await forgetThem(backups.repository, "web", [manifest.generation]);
    const said: string[] = [];
    const report = await runPrune(backups.repository, { warn: (message) => void said.push(message) });
    expect(said).toEqual([expect.stringMatching(/^A forgotten generation cannot be brought back/)]);
    expect(report.condemned.packs).toBeGreaterThan(0);
  },
);

test("one at a time: a second prune is refused, and a dead one's lease runs out", async () => {
  const backups = await newBackups();
  await backups.backup([diskOf(numbers(1, 9))]);
  const stuck = new FaultyStore(backups.store, { operation: "list", key: /^generations/, kind: "hang" });
  const run = new AbortController();
  const hanging = runPrune({ ...backups.repository, store: stuck }, {}, run);
  await expect.poll(() => keysOf(backups, "leases/")).toHaveLength(1);
  await expect
    .poll(async () => runPrune(backups.repository).catch((error: unknown) => error))
    .toMatchObject({
      kind: "locked",
      code: "E_PRUNING",
      message: expect.stringMatching(/^The repository is being pruned by process 1 on test; wait/) as unknown,
    });
  run.abort(new Error("stop"));
  await expect(hanging).rejects.toThrow("stop");
  expect(keysOf(backups, "leases/")).toEqual([]);
  await runPrune(backups.repository);
});
