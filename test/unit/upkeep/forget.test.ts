import { expect, test, vi } from "vitest";
import { AppError } from "../../../src/errors.ts";
import type { Repository } from "../../../src/repository/config.ts";
import { findForgotten, listForgotten } from "../../../src/repository/forgotten.ts";
import { commitGeneration, loadGenerations } from "../../../src/repository/generations.ts";
import { holdGeneration } from "../../../src/repository/holds.ts";
import type { StoredManifest } from "../../../src/repository/manifest.ts";
import { forgottenKey, generationKey, holdKey } from "../../../src/repository/names.ts";
import type { PinLookup } from "../../../src/repository/pins.ts";
import { withPin } from "../../../src/restore/pin.ts";
import { Calendar } from "../../../src/upkeep/calendar.ts";
import { forget } from "../../../src/upkeep/forget.ts";
import { planByName, planByPolicy, type SourcePlan } from "../../../src/upkeep/plan-forget.ts";
import type { RetentionPolicy } from "../../../src/upkeep/retention.ts";
import { FaultyStore, type FaultyOperation } from "../../support/faulty-store.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import { testManifest } from "../../support/manifests.ts";
import { SEALINGS, memoryRepository } from "../../support/memory-repository.ts";
import { seeded } from "../../support/seeded.ts";
import { diskOf, expectSame, newBackups, numbers, unchangedDisk } from "../backup/chunks.ts";

const never = new AbortController().signal;
const lookup: PinLookup = { graceMs: 24 * 3_600_000, isGone: () => false };
const details = { reason: null, host: "alpha", writer: "blockhaul 0" } as const;
const pinning = {
  purpose: "restore" as const,
  host: "alpha",
  writer: "blockhaul 0",
  unpinned: () => undefined,
};
const gone = new AppError("unavailable", "E_STORE", "The bucket does not answer");

const none = {
  hourly: undefined,
  daily: undefined,
  weekly: undefined,
  monthly: undefined,
  yearly: undefined,
};
const KEEP_TWO: RetentionPolicy = { last: 2, periods: none, within: undefined, tags: [] };

async function history(repository: Repository, source: string, days: number): Promise<StoredManifest[]> {
  const made: StoredManifest[] = [];
  for (let day = 1; day <= days; day++) {
    const before = made.at(-1);
    const parent = before === undefined ? null : { generation: before.generation, digest: before.digest };
    const time = new Date(Date.UTC(2026, 0, day, 3)).toISOString();
    const manifest = testManifest(time, { source, parent, sequence: day });
    made.push(await commitGeneration(repository, manifest, never));
  }
  return made;
}

async function planned(repository: Repository, ...sources: string[]): Promise<SourcePlan[]> {
  const calendar = new Calendar("UTC");
  return await planByPolicy(repository, sources, KEEP_TWO, calendar, lookup, never, (error) => {
    throw error;
  });
}

async function carryOut(
  repository: Repository,
  plan: SourcePlan,
  run = new AbortController(),
): Promise<SourcePlan> {
  return await forget(repository, plan, lookup, run);
}

async function there(repository: Repository): Promise<StoredManifest[]> {
  return await loadGenerations(repository, undefined, never);
}

test.each(SEALINGS)(
  "manifests go and nothing else; the other sources stay ($name)",
  async ({ encrypted }) => {
    const repository = memoryRepository({ encrypted });
    const web = await history(repository, "web", 5);
    const db = await history(repository, "db", 3);
    await repository.store.put("packs/5f0c9a52-3d1b-4c7e-9e63-0b6a0f5d2c11", Buffer.from("data"), never);
    await holdGeneration(repository, web[1]!, details, never);
    const before = [...repository.store.objects.keys()];
    const [plan] = await planned(repository, "web");
    expect(plan!.keep.map(({ generation, reasons }) => [generation, reasons])).toEqual([
      [web[1]!.generation, ["held"]],
      [web[3]!.generation, ["last 2"]],
      [web[4]!.generation, ["last 2", "newest of its source"]],
    ]);
    expect([...repository.store.objects.keys()]).toEqual(before); // a plan removes nothing
    expect(await carryOut(repository, plan!)).toEqual(plan);
    expect(await there(repository)).toEqual([...db, web[1], web[3], web[4]]);
    const removed = [web[0]!, web[2]!].map(({ generation }) => generationKey("web", generation));
    const copies = [web[0]!, web[2]!].map(({ generation }) => forgottenKey("web", generation));
    expect([...repository.store.objects.keys()].sort()).toEqual(
      [...before.filter((key) => !removed.includes(key)), ...copies].sort(),
    );
    const copied = await findForgotten(repository, web[2]!, never);
    expect(copied?.manifest, "for whoever wants it back").toEqual(web[2]);
    expect((await planned(repository)).map(({ source, remove }) => [source, remove.length])).toEqual([
      ["db", 1],
      ["web", 0],
    ]);
  },
);

test("a source that is not there is an error, and nothing is planned", async () => {
  const repository = memoryRepository();
  await history(repository, "web", 3);
  await expect(planned(repository, "web", "wbe")).rejects.toMatchObject({
    kind: "notFound",
    code: "E_NO_SOURCE",
  });
});

test("a damaged manifest stays, is told of, and takes no good one's place", async () => {
  const repository = memoryRepository();
  const web = await history(repository, "web", 4);
  repository.store.bytes(generationKey("web", web[3]!.generation))[50]! ^= 1;
  const said: AppError[] = [];
  const plans = await planByPolicy(repository, [], KEEP_TWO, new Calendar("UTC"), lookup, never, (error) => {
    said.push(error);
  });
  expect(said).toMatchObject([{ kind: "corrupt" }]);
  expect(plans[0]!.remove.map(({ generation }) => generation)).toEqual([web[0]!.generation]);
  await expect(planByName(repository, [web[3]!.generation.slice(0, 20)], lookup, never)).rejects.toThrow();
  const [byId] = await planByName(repository, [web[3]!.generation], lookup, never);
  expect(byId!.remove).toMatchObject([{ generation: web[3]!.generation, reasons: ["asked for", "damaged"] }]);
  await carryOut(repository, byId!);
  expect(await there(repository)).toEqual(web.slice(0, 3));
});

test("by name: any form, each once; the newest only by its id", async () => {
  const repository = memoryRepository();
  const web = await history(repository, "web", 3);
  const names = ["web@2026-01-01", web[0]!.generation, web[1]!.generation];
  const [plan] = await planByName(repository, names, lookup, never);
  expect(plan!.remove.map(({ generation }) => generation)).toEqual([web[0]!.generation, web[1]!.generation]);
  for (const newest of ["web", "web@latest", "latest", "web@2999-01-01"]) {
    const planning = planByName(repository, [web[0]!.generation, newest], lookup, never);
    await expect(planning, newest).rejects.toMatchObject({ kind: "usage", code: "E_NEWEST" });
    await expect(planning, newest).rejects.toThrow(web[2]!.generation);
  }
  const [last] = await planByName(repository, [web[2]!.generation], lookup, never);
  expect(last!.remove[0]!.reasons).toEqual(["asked for", "newest of its source"]);
});

test("a source called as its newest generation's id begins is still a name", async () => {
  const repository = memoryRepository();
  const time = "2026-01-01T03:00:00Z";
  const source = testManifest(time).generation.slice(0, 8);
  await commitGeneration(repository, testManifest(time, { source }), never);
  await expect(planByName(repository, [source], lookup, never)).rejects.toMatchObject({ code: "E_NEWEST" });
});

test("held or in use: not by a policy, not by id; the error says what to do", async () => {
  const repository = memoryRepository();
  const web = await history(repository, "web", 4);
  await holdGeneration(repository, web[0]!, details, never);
  const byId = planByName(repository, [web[1]!.generation, web[0]!.generation], lookup, never);
  await expect(byId).rejects.toMatchObject({ kind: "locked", code: "E_HELD" });
  await expect(byId).rejects.toThrow(`blockhaul release ${web[0]!.generation}`);
  await withPin(repository, web[1]!, pinning, never, async () => {
    const used = planByName(repository, [web[1]!.generation], lookup, never);
    await expect(used).rejects.toMatchObject({ kind: "locked", code: "E_IN_USE" });
    await expect(used).rejects.toThrow(/in use by a restore on alpha since 20/);
    const [plan] = await planned(repository);
    expect(plan!.keep[1]!.reasons).toEqual([expect.stringMatching(/^in use by a restore on alpha since /)]);
    expect(plan!.remove).toEqual([]);
  });
  const [plan] = await planned(repository);
  expect(plan!.remove.map(({ generation }) => generation)).toEqual([web[1]!.generation]);
});

/** A store that does something once, right before or after its first deletion of manifests. */
function atDeletion(
  repository: Repository,
  when: "before" | "after",
  work: () => Promise<void> | void,
): Repository {
  let done = false;
  const hook = async (operation: FaultyOperation, key: string): Promise<void> => {
    if (done || operation !== "delete" || !key.startsWith("generations/")) return;
    done = true;
    await work();
  };
  return { ...repository, store: new HookedStore(repository.store, { [when]: hook }) };
}

test.each(SEALINGS)(
  "R24: a restore that pins in the last moment keeps its generation ($name)",
  async ({ encrypted }) => {
    const repository = memoryRepository({ encrypted });
    const web = await history(repository, "web", 4);
    const [plan] = await planned(repository);
    const going = Promise.withResolvers<undefined>();
    const pinned = Promise.withResolvers<undefined>();
    let restoring: Promise<void> | undefined;
    const racing = atDeletion(repository, "before", async () => {
      restoring = withPin(repository, web[1]!, pinning, never, async () => {
        pinned.resolve(undefined); // has seen its generation, which is about to be deleted
        await going.promise;
      });
      await pinned.promise;
    });
    const result = await carryOut(racing, plan!);
    expect(result.remove.map(({ generation }) => generation)).toEqual([web[0]!.generation]);
    expect(result.keep.map(({ generation }) => generation)).toEqual(
      web.slice(1).map(({ generation }) => generation),
    );
    expect(result.keep[0]!.reasons).toEqual([expect.stringMatching(/^in use by a restore/)]);
    expect(await there(repository)).toEqual(web.slice(1)); // by its digest too: the very bytes
    going.resolve(undefined);
    await restoring;
  },
);

test("R24: a hold in the last moment keeps its generation; one after it finds none", async () => {
  const repository = memoryRepository();
  const web = await history(repository, "web", 4);
  const [plan] = await planned(repository);
  const racing = atDeletion(repository, "before", async () => {
    await holdGeneration(repository, web[0]!, details, never);
  });
  const result = await carryOut(racing, plan!);
  expect(result.keep[0]).toMatchObject({ generation: web[0]!.generation, reasons: ["held"] });
  expect(await there(repository)).toEqual([web[0], web[2], web[3]]);
  const late = holdGeneration(repository, web[1]!, details, never);
  await expect(late).rejects.toMatchObject({ code: "E_NO_GENERATION" });
  const restoring = withPin(repository, web[1]!, pinning, never, () => Promise.resolve());
  await expect(restoring).rejects.toMatchObject({ code: "E_NO_GENERATION" });
});

test("R24: a backup that stands on an older generation keeps it until it has ended", async () => {
  const backups = await newBackups();
  const { repository } = backups;
  const contents = numbers(1, 9);
  const { manifest: old } = await backups.backup([diskOf(contents)]);
  for (let more = 0; more < 2; more++) await backups.backup([diskOf(contents)]);
  let during: SourcePlan | undefined;
  const disk = unchangedDisk(contents);
  const report = await backups.backup([disk], {
    bitmap: "b0",
    parent: old.generation,
    assertAlive: async () => {
      const byId = planByName(repository, [old.generation], lookup, never);
      await expect(byId).rejects.toMatchObject({ code: "E_IN_USE" });
      const [plan] = await planned(repository);
      during ??= await carryOut(repository, plan!);
    },
  });
  const inUse = expect.stringMatching(/^in use by a backup on test since /) as string;
  expect(during!.keep[0]).toMatchObject({ generation: old.generation, reasons: [inUse] });
  const [plan] = await planned(repository);
  await carryOut(repository, plan!);
  const left = await there(repository);
  expect(left.map(({ generation }) => generation)).not.toContain(old.generation);
  // its child needs nothing of it
  expect(left.at(-1)!.generation).toBe(report.manifest.generation);
  expectSame(await backups.restore(left.at(-1)!.disks[0]!), disk.bytes);
  expect((await backups.verify()).problems).toEqual([]);
});

test("R24: whatever the order of requests, what was held or pinned is there in the end", async () => {
  const seed = Date.now() % 1_000_000;
  const random = seeded(seed);
  const outcomes = { kept: 0, missed: 0 };
  for (let round = 0; round < 300; round++) {
    const repository = memoryRepository();
    const web = await history(repository, "web", 4);
    const [plan] = await planned(repository);
    const shuffled = (): Repository => {
      const before = async (): Promise<void> => {
        for (let turns = random(5); turns > 0; turns--) await new Promise((resolve) => setImmediate(resolve));
      };
      return { ...repository, store: new HookedStore(repository.store, { before }) };
    };
    const end = Promise.withResolvers<undefined>();
    const started = Promise.withResolvers<undefined>();
    const use = async (): Promise<void> => {
      for (let turns = random(40); turns > 0; turns--) await new Promise((resolve) => setImmediate(resolve));
      if (round % 2 === 0) await holdGeneration(shuffled(), web[0]!, details, never);
      else {
        await withPin(shuffled(), web[0]!, pinning, never, async () => {
          started.resolve(undefined);
          await end.promise;
        });
      }
    };
    const user = use().finally(() => started.resolve(undefined));
    const settled = user.then(
      () => true,
      () => false,
    );
    await Promise.all([carryOut(shuffled(), plan!), started.promise]);
    const isThere = (await there(repository)).some(({ generation }) => generation === web[0]!.generation);
    end.resolve(undefined);
    const used = await settled;
    if (used) expect(isThere, `seed ${seed}, round ${round}`).toBe(true);
    outcomes[used ? "kept" : "missed"]++;
  }
  expect(Math.min(outcomes.kept, outcomes.missed), `seed ${seed}`).toBeGreaterThan(10); // both were tried
});

test("R24: when pins cannot be read after the deletion, all of it is put back", async () => {
  const repository = memoryRepository();
  const web = await history(repository, "web", 6);
  const [plan] = await planned(repository);
  // holds and runs are listed once before the deletion
  const store = new FaultyStore(repository.store, {
    operation: "list",
    kind: "before",
    key: /^runs/,
    skip: 1,
    error: gone,
  });
  await expect(carryOut({ ...repository, store }, plan!)).rejects.toBe(gone);
  store.assertAllHit();
  expect(await there(repository)).toEqual(web);
});

test("a deletion whose reply is lost is undone; the next try does it", async () => {
  const repository = memoryRepository();
  const web = await history(repository, "web", 6);
  const [plan] = await planned(repository);
  const store = new FaultyStore(repository.store, { operation: "delete", kind: "after", error: gone });
  await expect(carryOut({ ...repository, store }, plan!)).rejects.toBe(gone);
  store.assertAllHit();
  expect(await there(repository)).toEqual(web);
  await carryOut(repository, plan!);
  expect(await there(repository)).toEqual(web.slice(4));
});

test("Ctrl-C between the deletion and the look: put back", async () => {
  const repository = memoryRepository();
  const web = await history(repository, "web", 6);
  const [plan] = await planned(repository);
  const run = new AbortController();
  const reason = new AppError("cancelled", "E_INTERRUPTED", "Interrupted");
  const racing = atDeletion(repository, "after", () => run.abort(reason));
  await expect(carryOut(racing, plan!, run)).rejects.toBe(reason);
  expect(await there(repository)).toEqual(web);
});

test("what could not be put back is named", async () => {
  const repository = memoryRepository();
  const web = await history(repository, "web", 4);
  const [plan] = await planned(repository);
  const store = new FaultyStore(
    repository.store,
    { operation: "list", kind: "before", key: /^runs/, skip: 1, error: gone },
    { operation: "put", kind: "before", error: gone },
  );
  const failing = carryOut({ ...repository, store }, plan!);
  await expect(failing).rejects.toMatchObject({
    kind: "unavailable",
    code: "E_FORGET_HALF",
    context: { count: 1 },
  });
  await expect(failing).rejects.toThrow(generationKey("web", web[0]!.generation));
  store.assertAllHit();
});

test("nothing is put back by a process that slept: its data may be gone", async () => {
  const repository = memoryRepository();
  const web = await history(repository, "web", 4);
  const [plan] = await planned(repository);
  const now = Date.now();
  const racing = atDeletion(repository, "after", () => {
    vi.spyOn(Date, "now").mockReturnValue(now + 3 * 3_600_000);
    throw gone;
  });
  try {
    await expect(carryOut(racing, plan!)).rejects.toMatchObject({ code: "E_FORGET_HALF", cause: gone });
  } finally {
    vi.restoreAllMocks();
  }
  expect(await there(repository)).toEqual(web.slice(2));
});

test("one that somebody else has forgotten is no error; one that has changed is", async () => {
  const repository = memoryRepository();
  const web = await history(repository, "web", 5);
  const [plan] = await planned(repository);
  const [first, second] = web.map(({ generation }) => generationKey("web", generation));
  repository.store.objects.delete(first!);
  repository.store.bytes(second!)[40]! ^= 1;
  await expect(carryOut(repository, plan!)).rejects.toMatchObject({
    kind: "corrupt",
    code: "E_MANIFEST_CHANGED",
  });
  repository.store.bytes(second!)[40]! ^= 1;
  await carryOut(repository, plan!);
  expect(await there(repository)).toEqual(web.slice(3));
});

test("many: oldest first, a few requests for a batch of 64, and an unreadable hold counts", async () => {
  const repository = memoryRepository();
  const web = await history(repository, "web", 152);
  await repository.store.put(holdKey("web", web[70]!.generation), Buffer.from("rubbish"), never);
  const [plan] = await planned(repository);
  const deleted: string[] = [];
  const store = new HookedStore(repository.store, {
    before: (operation, key) => {
      if (operation === "delete") deleted.push(key);
    },
  });
  const before = repository.store.requests();
  const result = await carryOut({ ...repository, store }, plan!);
  const after = repository.store.requests();
  expect(result.remove).toHaveLength(149);
  expect(await there(repository)).toEqual([web[70], web[150], web[151]]);
  expect(deleted).toEqual([web[0], web[64], web[129]].map((one) => generationKey("web", one!.generation)));
  const sent = (operation: string): number => (after[operation] ?? 0) - (before[operation] ?? 0);
  expect([sent("GetObject"), sent("DeleteObjects"), sent("ListObjectsV2"), sent("PutObject")]).toEqual([
    149, 3, 12, 149,
  ]);
  expect(await listForgotten(repository, "web", never)).toHaveLength(149);
});
