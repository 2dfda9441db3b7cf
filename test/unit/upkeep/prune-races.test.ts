import { hash } from "node:crypto";
import { beforeEach, expect, test } from "vitest";
import { condemn, readCondemned } from "../../../src/repository/condemned.ts";
import type { Repository } from "../../../src/repository/config.ts";
import { keepForgotten } from "../../../src/repository/forgotten.ts";
import { encodeHold } from "../../../src/repository/holds.ts";
import type { Manifest } from "../../../src/repository/manifest.ts";
import { generationKey, holdKey } from "../../../src/repository/names.ts";
import { withPin } from "../../../src/restore/pin.ts";
import { parseGrace } from "../../../src/upkeep/prune/grace.ts";
import { restoreGeneration } from "../../../src/upkeep/restore-generation.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import { temporaryFolder } from "../../support/folder.ts";
import { DAY, HOUR, forgetThem, forward, runPrune, stopClock } from "../../support/prunes.ts";
import { diskOf, expectSame, newBackups, numbers } from "../backup/chunks.ts";

const never = new AbortController().signal;
const MINUTE = 60_000;
type TestBackups = Awaited<ReturnType<typeof newBackups>>;

beforeEach(stopClock);

function namesUnder(backups: TestBackups, prefix: string): string[] {
  const keys = [...backups.store.objects.keys()].filter((key) => key.startsWith(prefix));
  return keys.map((key) => key.slice(prefix.length));
}

/** A backup whose manifest nobody has: its packs are listed in the index, and no generation needs them. */
async function deadRun(
  backups: TestBackups,
  contents: readonly number[],
  source = "dead",
): Promise<string[]> {
  const before = namesUnder(backups, "packs/");
  const { manifest } = await backups.backup([diskOf(contents)], { source });
  backups.store.objects.delete(generationKey(source, manifest.generation));
  return namesUnder(backups, "packs/").filter((pack) => !before.includes(pack));
}

/** As the heartbeat of a run would, whose clock stands still here. */
async function beat(backups: TestBackups, source: string): Promise<void> {
  for (const name of namesUnder(backups, `leases/${source}/`)) {
    const key = `leases/${source}/${name}`;
    await backups.store.replace(key, backups.store.bytes(key), never);
  }
}

async function expectRestores(
  backups: TestBackups,
  manifest: Manifest,
  contents: readonly number[],
): Promise<void> {
  expectSame(await backups.restore(manifest.disks[0]!), diskOf(contents).bytes);
}

test("R1: a manifest that comes while the prune runs saves what it names, condemned long ago", async () => {
  const backups = await newBackups({ packChunks: 4 });
  const { manifest } = await backups.backup([diskOf(numbers(1, 9))]);
  const key = generationKey("web", manifest.generation);
  const stored = backups.store.bytes(key);
  backups.store.objects.delete(key);
  forward(2 * DAY);
  expect((await runPrune(backups.repository)).condemned.packs).toBe(3);
  forward(2 * DAY);
  let lists = 0;
  const store = new HookedStore(backups.store, {
    before: async (operation, prefix) => {
      // the first mark knows nothing of it
      if (operation === "list" && prefix === "generations/" && ++lists === 2)
        await backups.store.put(key, stored, never);
    },
  });
  expect(await runPrune({ ...backups.repository, store })).toMatchObject({
    deleted: { packs: 0, layers: 0 },
    kept: { packs: 3, layers: 1 },
  });
  await expectRestores(backups, manifest, numbers(1, 9));
});

test("R1: generations are listed after the record is durable, and before anything is deleted", async () => {
  const backups = await newBackups({ packChunks: 4 });
  await deadRun(backups, numbers(1, 5), "one");
  forward(2 * DAY);
  await runPrune(backups.repository);
  const { manifest } = await backups.backup([diskOf(numbers(11, 20))], { source: "two" });
  await backups.backup([diskOf([11])], { source: "three" }); // keeps one pack, and so an entry in that index object
  await forgetThem(backups.repository, "two", [manifest.generation]);
  forward(2 * DAY);
  const log: string[] = [];
  const store = new HookedStore(backups.store, {
    before: (operation, key) => void log.push(`begin ${operation} ${key.split("/")[0]!}`),
    after: (operation, key) => void log.push(`end ${operation} ${key.split("/")[0]!}`),
  });
  await runPrune({ ...backups.repository, store });
  const indexes = [log.indexOf("end put index"), log.indexOf("begin delete index")];
  const record = [log.indexOf("begin put condemned"), log.indexOf("end put condemned")];
  const mark = ["generations", "forgotten", "runs"].map((kind) => log.lastIndexOf(`begin list ${kind}`));
  const places = [...indexes, ...record, mark[0]!, log.indexOf("begin delete packs")];
  expect(places).not.toContain(-1);
  expect(places).toEqual(places.toSorted((a, b) => a - b));
  expect(mark, "in the order in which things move").toEqual(mark.toSorted((a, b) => a - b));
});

test("R1: a backup that dedups against what is being condemned is whole, and so is what it repairs", async () => {
  const backups = await newBackups({ packChunks: 4 });
  await deadRun(backups, numbers(1, 9));
  forward(3 * DAY);
  let done = false;
  const store = new HookedStore(backups.store, {
    before: async (operation, key) => {
      if (done || operation !== "put" || !key.startsWith("generations/")) return;
      done = true;
      expect((await runPrune(backups.repository)).condemned.packs).toBeGreaterThan(0);
    },
  });
  const report = await backups.backup([diskOf(numbers(1, 9))], { store });
  expect(backups.warnings).toEqual([expect.stringMatching(/^A prune condemned objects that generation/)]);
  for (let time = 0; time < 3; time++) {
    forward(2 * DAY);
    await runPrune(backups.repository);
  }
  const generations = await backups.generations();
  expect(generations.map(({ sequence }) => sequence)).toEqual([1, 2]);
  expect(generations.at(-1)!.generation).toBe(report.manifest.generation);
  for (const manifest of generations) await expectRestores(backups, manifest, numbers(1, 9));
});

test("R5: a host that slept finds nothing in packs that were condemned, and still finds the others", async () => {
  const backups = await newBackups({ packChunks: 4 });
  const sleeper = await temporaryFolder();
  // one index object: some of its packs stay in use by "db"
  const { manifest } = await backups.backup([diskOf(numbers(1, 13))], { cacheDir: sleeper });
  const all = namesUnder(backups, "packs/");
  await backups.backup([diskOf(numbers(1, 4))], { source: "db" });
  await forgetThem(backups.repository, "web", [manifest.generation]);
  for (let day = 0; day < 14; day += 2) {
    forward(2 * DAY);
    await runPrune(backups.repository);
  }
  const gone = all.filter((pack) => !backups.store.objects.has(`packs/${pack}`));
  expect(gone.length).toBeGreaterThan(0);
  expect(gone.length).toBeLessThan(all.length);
  expect(namesUnder(backups, "condemned/"), "no tombstone helps").toEqual([]);
  const asked: string[] = [];
  const store = new HookedStore(backups.store, {
    before: (operation, key) => {
      if (operation.startsWith("get") && key.startsWith("packs/")) asked.push(key.slice("packs/".length));
    },
  });
  const report = await backups.backup([diskOf(numbers(1, 13))], { source: "new", cacheDir: sleeper, store });
  expect(asked.filter((pack) => gone.includes(pack))).toEqual([]);
  expect(report.stats.chunksDeduplicated).toBeGreaterThanOrEqual(3);
  await expectRestores(backups, report.manifest, numbers(1, 13));
});

/** What a `forget` leaves that dies right after its deletion. */
async function halfForgotten(repository: Repository, manifest: Manifest): Promise<void> {
  const key = generationKey(manifest.source, manifest.generation);
  const stored = await repository.store.get(key, 4 << 20, never);
  await keepForgotten(repository, manifest, stored, await repository.store.now(never), never);
  await repository.store.delete([key], never);
}

test("R6: what a restore reads stays, although its manifest is gone and cannot come back", async () => {
  const backups = await newBackups({ packChunks: 4 });
  await backups.backup([diskOf(numbers(1, 9))]);
  const [manifest] = await backups.generations();
  forward(DAY);
  const pinning = {
    purpose: "restore" as const,
    host: "alpha",
    writer: "test",
    unpinned: () => undefined,
  };
  await withPin(
    backups.repository,
    { ...manifest!, digest: digestOf(backups, manifest!), storedBytes: 0 },
    pinning,
    never,
    async () => {
      await halfForgotten(backups.repository, manifest!);
      for (let time = 0; time < 4; time++) {
        forward(3 * HOUR);
        expect(await runPrune(backups.repository, { graceMs: 2 * HOUR })).toMatchObject({
          generations: 1,
          condemned: { packs: 0, layers: 0 },
          tidied: { forgotten: 0 },
        });
      }
      await expectRestores(backups, manifest!, numbers(1, 9));
    },
  );
  forward(3 * HOUR); // it has ended
  expect((await runPrune(backups.repository, { graceMs: 2 * HOUR })).condemned.packs).toBe(3);
});

function digestOf(backups: TestBackups, { source, generation }: Manifest): string {
  const stored = backups.store.bytes(generationKey(source, generation));
  return hash("sha256", stored);
}

test("R7: the packs of a backup that runs for days are not condemned", async () => {
  const backups = await newBackups({ packChunks: 4 });
  await backups.backup([diskOf(numbers(21, 25))], { source: "db" });
  const report = await backups.backup([diskOf(numbers(1, 9))], {
    assertAlive: async () => {
      forward(2 * DAY);
      await beat(backups, "web");
      expect(await runPrune(backups.repository)).toMatchObject({
        condemned: { packs: 0, layers: 0 },
        young: { packs: 3 },
      });
    },
  });
  expect(backups.warnings).toEqual([]);
  await expectRestores(backups, report.manifest, numbers(1, 9));
});

test("R7: nor is anything deleted that such a backup found at its start", async () => {
  const backups = await newBackups({ packChunks: 4 });
  await deadRun(backups, numbers(1, 9));
  forward(3 * DAY);
  const { manifest } = await backups.backup([diskOf(numbers(1, 9))], {
    assertAlive: async () => {
      expect((await runPrune(backups.repository)).condemned.packs).toBe(3);
      forward(2 * DAY);
      await beat(backups, "web");
      expect(await runPrune(backups.repository)).toMatchObject({
        deleted: { packs: 0 },
        waiting: { packs: 3 },
      });
    },
  });
  expect(manifest.sequence).toBe(2);
  for (const one of await backups.generations()) await expectRestores(backups, one, numbers(1, 9));
});

/** Forgets a generation whose hold comes at the last moment; `between` happens before that is found and made up for. */
async function forgetWithLateHold(
  backups: TestBackups,
  manifest: Manifest,
  between: () => Promise<void>,
): Promise<void> {
  const { source, generation } = manifest;
  const heldAt = new Date().toISOString();
  const hold = {
    format: 1,
    repository: backups.repository.config.repository,
    source,
    generation,
    heldAt,
    reason: null,
    host: "a",
    writer: "t",
  } as const;
  const store = new HookedStore(backups.store, {
    before: async (operation, key) => {
      if (operation === "delete" && key.startsWith("generations/"))
        await backups.store.put(holdKey(source, generation), encodeHold(backups.repository, hold), never);
    },
    after: async (operation, key) => {
      if (operation === "delete" && key.startsWith("generations/")) await between();
    },
  });
  await forgetThem({ ...backups.repository, store }, source, [generation]);
}

test("R24: prunes at the moment when a forget is about to put a manifest back take nothing of it", async () => {
  const backups = await newBackups({ packChunks: 4 });
  const { manifest } = await backups.backup([diskOf(numbers(1, 9))]);
  forward(10 * DAY);
  await forgetWithLateHold(backups, manifest, async () => {
    const graceMs = parseGrace("2h");
    for (const minutes of [0, 30, 29]) {
      forward(minutes * MINUTE);
      expect(await runPrune(backups.repository, { graceMs })).toMatchObject({
        generations: 0,
        forgotten: 1,
        condemned: { packs: 0 },
        deleted: { packs: 0 },
      });
    }
  });
  expect((await backups.generations()).map(({ generation }) => generation)).toEqual([manifest.generation]);
  await expectRestores(backups, manifest, numbers(1, 9));
  expect(() => parseGrace("1h")).toThrow(expect.objectContaining({ code: "E_GRACE" }));
});

test("R24: with a grace within that hour the generation would be lost", async () => {
  const backups = await newBackups({ packChunks: 4 });
  const { manifest } = await backups.backup([diskOf(numbers(1, 9))]);
  forward(10 * DAY);
  await forgetWithLateHold(backups, manifest, async () => {
    for (const minutes of [25, 25]) {
      forward(minutes * MINUTE);
      await runPrune(backups.repository, { graceMs: 20 * MINUTE });
    }
  });
  expect((await backups.generations()).map(({ generation }) => generation)).toEqual([manifest.generation]);
  expect(namesUnder(backups, "packs/")).toEqual([]);
});

test("R25: a generation that comes back while a prune clears its record away keeps everything", async () => {
  const backups = await newBackups({ packChunks: 4 });
  const { manifest } = await backups.backup([diskOf(numbers(1, 9))]);
  // as after a repair: the generation stands on what was condemned at the moment of its commit
  const packs = namesUnder(backups, "packs/");
  await condemn(backups.repository, { packs, layers: [], forwards: [] }, new Date(), never);
  forward(5 * DAY);
  await forgetThem(backups.repository, "web", [manifest.generation]);
  forward(2 * DAY);
  const store = new HookedStore(backups.store, {
    before: async (operation, key) => {
      if (operation === "delete" && key.startsWith("forgotten/"))
        await restoreGeneration(backups.repository, manifest, never);
    },
  });
  expect(await runPrune({ ...backups.repository, store })).toMatchObject({
    tidied: { forgotten: 1 },
    deleted: { packs: 0 },
    kept: { packs: 3 },
  });
  await expectRestores(backups, manifest, numbers(1, 9));
});

test("R25: a record that a prune has cleared away meanwhile brings nothing back", async () => {
  const backups = await newBackups({ packChunks: 4 });
  const { manifest } = await backups.backup([diskOf(numbers(1, 9))]);
  await forgetThem(backups.repository, "web", [manifest.generation]);
  forward(2 * DAY);
  const store = new HookedStore(backups.store, {
    before: async (operation, key) => {
      if (operation === "put" && key.startsWith("generations/")) await runPrune(backups.repository);
    },
  });
  await expect(restoreGeneration({ ...backups.repository, store }, manifest, never)).rejects.toMatchObject({
    kind: "notFound",
    code: "E_TOO_LATE",
  });
  expect(await backups.generations()).toEqual([]);
});

test("R26: what is in use again stays condemned: the writer that has not looked yet must find it", async () => {
  const backups = await newBackups({ packChunks: 4 });
  await deadRun(backups, numbers(1, 9));
  forward(3 * DAY);
  let pruned = 0;
  const store = new HookedStore(backups.store, {
    after: async (operation, key) => {
      if (operation !== "put" || !key.startsWith("generations/") || ++pruned > 1) return;
      forward(2 * HOUR);
      await beat(backups, "web");
      expect((await runPrune(backups.repository)).kept.packs).toBe(3); // another prune knows the manifest
      expect((await readCondemned(backups.repository, never)).packs.size).toBe(3);
    },
  });
  const { manifest } = await backups.backup([diskOf(numbers(1, 9))], {
    store,
    assertAlive: async () => {
      await runPrune(backups.repository);
    },
  });
  expect(manifest.sequence).toBe(2);
  await expectRestores(backups, manifest, numbers(1, 9));
});
