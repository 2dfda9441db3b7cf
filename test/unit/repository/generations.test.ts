import { expect, test } from "vitest";
import { AppError } from "../../../src/errors.ts";
import { checkClock, nextGenerationTime } from "../../../src/repository/clock.ts";
import type { Repository } from "../../../src/repository/config.ts";
import {
  commitGeneration,
  latestGeneration,
  listGenerationNames,
  loadGeneration,
  loadGenerations,
} from "../../../src/repository/generations.ts";
import type { Manifest, StoredManifest } from "../../../src/repository/manifest.ts";
import { generationKey, uuidTime, uuidv7 } from "../../../src/repository/names.ts";
import { resolveGeneration } from "../../../src/repository/resolve-generation.ts";
import { FaultyStore } from "../../support/faulty-store.ts";
import { testManifest } from "../../support/manifests.ts";
import { SEALINGS, memoryRepository } from "../../support/memory-repository.ts";
import { MemoryStore } from "../../support/memory-store.ts";

const never = new AbortController().signal;
const gone = new AppError("unavailable", "E_STORE", "The bucket does not answer");

/** A generation a day from the 1st on, each the child of the one before. */
async function history(repository: Repository, source: string, days: number): Promise<StoredManifest[]> {
  const made: StoredManifest[] = [];
  for (let day = 1; day <= days; day++) {
    const before = made.at(-1);
    const parent = before === undefined ? null : { generation: before.generation, digest: before.digest };
    const time = `2026-11-${String(day).padStart(2, "0")}T03:00:00Z`;
    made.push(
      await commitGeneration(repository, testManifest(time, { source, parent, sequence: day }), never),
    );
  }
  return made;
}

test.each(SEALINGS)("what is committed is listed and loaded ($name)", async ({ encrypted }) => {
  const repository = memoryRepository({ encrypted });
  const web = await history(repository, "web", 3);
  const db = await history(repository, "db", 2);
  await repository.store.put("generations/web/README", Buffer.from("not ours"), never);
  expect(await loadGenerations(repository, undefined, never)).toEqual([...db, ...web]);
  expect(await loadGenerations(repository, "web", never)).toEqual(web);
  expect(await loadGenerations(repository, "we", never)).toEqual([]);
  const names = await listGenerationNames(repository, "db", never);
  expect(names).toEqual(db.map(({ source, generation }) => ({ source, generation })));
  expect(await loadGeneration(repository, web[1]!, never)).toEqual(web[1]);
});

test("a child's digest proves which parent it had", async () => {
  const repository = memoryRepository();
  const [first, second] = await history(repository, "web", 2);
  await loadGeneration(repository, first!, never, second!.parent!.digest);
  const forged = { ...stripped(first!), reason: "another" };
  await repository.store.delete([generationKey("web", first!.generation)], never);
  await commitGeneration(repository, forged, never);
  const loading = loadGeneration(repository, first!, never, second!.parent!.digest);
  await expect(loading).rejects.toMatchObject({ kind: "corrupt", code: "E_MANIFEST_DIGEST" });
});

function stripped(stored: StoredManifest): Manifest {
  const manifest: Record<string, unknown> = { ...stored };
  delete manifest["digest"];
  delete manifest["storedBytes"];
  return manifest as Manifest;
}

test("order is by sequence, then commit time; a generation deleted meanwhile is left out", async () => {
  const repository = memoryRepository();
  const late = testManifest("2026-11-05T00:00:00Z", { sequence: 1, committedAt: "2026-11-20T00:00:00.000Z" });
  const tied = testManifest("2026-11-02T00:00:00Z", { sequence: 2, committedAt: "2026-11-09T00:00:00.000Z" });
  const early = testManifest("2026-11-03T00:00:00Z", {
    sequence: 2,
    committedAt: "2026-11-08T00:00:00.000Z",
  });
  for (const manifest of [tied, late, early]) await commitGeneration(repository, manifest, never);
  const order = (await loadGenerations(repository, "web", never)).map(({ generation }) => generation);
  expect(order).toEqual([late.generation, early.generation, tied.generation]);
  expect((await latestGeneration(repository, "web", never))?.generation).toBe(tied.generation);
  const store = new FaultyStore(repository.store, {
    operation: "get",
    kind: "before",
    error: new AppError("notFound", "E_NO_OBJECT", "gone"),
  });
  expect((await loadGenerations({ ...repository, store }, "web", never)).length).toBe(2);
  store.assertAllHit();
});

test("latest looks at a few manifests, however many there are", async () => {
  const repository = memoryRepository();
  const web = await history(repository, "web", 20);
  const before = repository.store.requests()["GetObject"] ?? 0;
  expect(await latestGeneration(repository, "web", never)).toEqual(web.at(-1));
  expect((repository.store.requests()["GetObject"] ?? 0) - before).toBe(4);
  expect(await latestGeneration(repository, "db", never)).toBeUndefined();
});

test.each(SEALINGS)("R19: a lost reply is answered by reading back ($name)", async ({ encrypted }) => {
  const base = memoryRepository({ encrypted });
  const store = new FaultyStore(base.store, { operation: "put", kind: "after", error: gone });
  const manifest = testManifest("2026-11-22T03:00:00Z");
  const committed = await commitGeneration({ ...base, store }, manifest, never);
  store.assertAllHit();
  expect(await loadGeneration(base, manifest, never)).toEqual(committed);
});

test("R19: a manifest that did not get there is a failure", async () => {
  const base = memoryRepository();
  const store = new FaultyStore(base.store, { operation: "put", kind: "before", error: gone });
  await expect(
    commitGeneration({ ...base, store }, testManifest("2026-11-22T03:00:00Z"), never),
  ).rejects.toBe(gone);
  store.assertAllHit();
  expect(base.store.objects.size).toBe(0);
});

test("R19: when it cannot be told, that is said", async () => {
  const base = memoryRepository();
  const store = new FaultyStore(
    base.store,
    { operation: "put", kind: "after", error: gone },
    { operation: "get", kind: "before", error: gone },
  );
  const committing = commitGeneration({ ...base, store }, testManifest("2026-11-22T03:00:00Z"), never);
  await expect(committing).rejects.toMatchObject({
    kind: "unavailable",
    code: "E_COMMIT_UNKNOWN",
    cause: gone,
  });
  store.assertAllHit();
});

test("R19: the same bytes again are success, other bytes are an error and change nothing", async () => {
  const repository = memoryRepository();
  const manifest = testManifest("2026-11-22T03:00:00Z");
  const first = await commitGeneration(repository, manifest, never);
  expect(await commitGeneration(repository, manifest, never)).toEqual(first);
  const other = { ...manifest, run: uuidv7(0) };
  const committing = commitGeneration(repository, other, never);
  await expect(committing).rejects.toMatchObject({ kind: "locked", code: "E_GENERATION_EXISTS" });
  expect(await loadGeneration(repository, manifest, never)).toEqual(first);
});

test("R19: a store that says 'exists' for our own lost write is believed only after a look", async () => {
  const base = memoryRepository();
  const taken = new AppError("locked", "E_EXISTS", "exists");
  const store = new FaultyStore(base.store, { operation: "put", kind: "after", error: taken });
  await commitGeneration({ ...base, store }, testManifest("2026-11-22T03:00:00Z"), never);
  store.assertAllHit();
});

test("an aborted listing ends with the reason", async () => {
  const base = memoryRepository();
  await history(base, "web", 3);
  const stop = new AbortController();
  const store = new FaultyStore(base.store, { operation: "get", kind: "hang" });
  const loading = loadGenerations({ ...base, store }, "web", stop.signal);
  const reason = new Error("stop");
  setImmediate(() => stop.abort(reason));
  await expect(loading).rejects.toBe(reason);
});

test("R22: a generation is dated by the store, and always after the ones before", () => {
  const now = new Date("2026-11-22T03:00:00Z");
  const older = uuidv7(now.getTime() - 1000);
  const newer = uuidv7(now.getTime() + 5000);
  expect(nextGenerationTime(now, [])).toBe(now.getTime());
  expect(nextGenerationTime(now, [older])).toBe(now.getTime());
  expect(nextGenerationTime(now, [newer, older])).toBe(now.getTime() + 5001);
  const far = uuidv7(now.getTime() + 16 * 60_000);
  const failing = (): number => nextGenerationTime(now, [far]);
  expect(failing).toThrow(expect.objectContaining({ kind: "usage", code: "E_STORE_CLOCK" }));
});

test("R22: a local clock more than 15 minutes off is refused, with the offset", () => {
  const now = new Date("2026-11-22T03:00:00Z");
  const off = (minutes: number): Date => new Date(now.getTime() + minutes * 60_000);
  expect(checkClock(now, off(15))).toBe(15 * 60_000);
  expect(checkClock(now, off(-15))).toBe(-15 * 60_000);
  expect(() => checkClock(now, off(16))).toThrow("16 minutes ahead of");
  expect(() => checkClock(now, off(-61))).toThrow("61 minutes behind");
  expect(() => checkClock(now, off(16))).toThrow(expect.objectContaining({ code: "E_CLOCK_OFF" }));
});

test("every way to name a generation", async () => {
  const repository = memoryRepository();
  const web = await history(repository, "web", 3);
  const named = async (text: string): Promise<string> =>
    (await resolveGeneration(repository, text, never)).generation;
  const [one, two, three] = web.map(({ generation }) => generation) as [string, string, string];
  expect(await named("latest")).toBe(three);
  expect(await named("web")).toBe(three);
  expect(await named("web@latest")).toBe(three);
  expect(await named(two)).toBe(two);
  expect(await named(two.toUpperCase())).toBe(two);
  expect(await named(two.slice(0, 13))).toBe(two);
  expect(await named("web@2026-11-02T03:00Z")).toBe(two);
  expect(await named("web@2026-11-02T04:00+01:00")).toBe(two);
  expect(await named("web@2026-11-02T02:59:59.999Z")).toBe(one);
  expect(await named("web@2026-11-02")).toBe(two);
  expect(await named("web@2027-01-01T00:00Z")).toBe(three);
});

test("ways that lead nowhere, or to several", async () => {
  const repository = memoryRepository();
  const failing = (text: string): Promise<unknown> =>
    resolveGeneration(repository, text, never).catch((e: unknown) => e);
  expect(await failing("latest")).toMatchObject({ kind: "notFound", code: "E_NO_GENERATION" });
  const web = await history(repository, "web", 2);
  await history(repository, "db", 1);
  const several = await failing("latest");
  expect(several).toMatchObject({ kind: "usage", code: "E_GENERATION_AMBIGUOUS" });
  expect(several).toMatchObject({ message: expect.stringContaining("db@latest, web@latest") as string });
  const prefix = web[0]!.generation.slice(0, 4);
  const ambiguous = await failing(prefix);
  expect(ambiguous).toMatchObject({ kind: "usage", code: "E_GENERATION_AMBIGUOUS" });
  for (const { generation } of web) {
    expect(ambiguous).toMatchObject({ message: expect.stringContaining(generation) as string });
  }
  const before = await failing("web@2026-10-01T00:00Z");
  expect(before).toMatchObject({ kind: "notFound", code: "E_NO_GENERATION" });
  expect(before).toMatchObject({ message: expect.stringContaining(web[0]!.generation) as string });
  expect(await failing("mail@latest")).toMatchObject({ kind: "notFound", code: "E_NO_SOURCE" });
  expect(await failing("mail@2026-11-02")).toMatchObject({ kind: "notFound", code: "E_NO_SOURCE" });
  expect(await failing("nothing")).toMatchObject({ kind: "notFound", code: "E_NO_GENERATION" });
  expect(await failing(uuidv7(0))).toMatchObject({ kind: "notFound", code: "E_NO_GENERATION" });
  expect(await failing("")).toMatchObject({ kind: "notFound", code: "E_NO_GENERATION" });
  for (const form of [
    "web@yesterday",
    "web@2026-11-22T03:00",
    "web@",
    "@latest",
    "../x@latest",
    "web@2026-13-01",
  ]) {
    expect(await failing(form), form).toMatchObject({ kind: "usage", code: "E_GENERATION_FORM" });
  }
});

test("one bit of a manifest is found, and says whose", async () => {
  const store = new MemoryStore();
  const repository = memoryRepository({ store });
  const [web] = await history(repository, "web", 1);
  const key = generationKey("web", web!.generation);
  store.bytes(key)[100]! ^= 1;
  const loading = resolveGeneration(repository, "latest", never);
  await expect(loading).rejects.toMatchObject({ kind: "corrupt", code: "E_RECORD" });
  await expect(loading).rejects.toThrow(key);
  expect(uuidTime(web!.generation)).toBe(Date.parse("2026-11-01T03:00:00Z"));
});
