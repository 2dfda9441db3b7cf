import { beforeEach, expect, test } from "vitest";
import { forgottenKey, generationKey } from "../../../src/repository/names.ts";
import {
  listReturnable,
  resolveForgotten,
  restoreGeneration,
} from "../../../src/upkeep/restore-generation.ts";
import { FaultyStore } from "../../support/faulty-store.ts";
import { DAY, HOUR, forgetThem, forward, runPrune, stopClock } from "../../support/prunes.ts";
import { diskOf, expectSame, newBackups, numbers } from "../backup/chunks.ts";

const never = new AbortController().signal;

beforeEach(stopClock);

test("what was forgotten comes back byte for byte, for a grace, whatever is pruned meanwhile", async () => {
  const backups = await newBackups({ packChunks: 4 });
  const { repository, store } = backups;
  const { manifest } = await backups.backup([diskOf(numbers(1, 9))], { full: true });
  await backups.backup([diskOf(numbers(21, 25))], { full: true });
  const key = generationKey("web", manifest.generation);
  const stored = Buffer.from(store.bytes(key));
  forward(10 * DAY);
  await forgetThem(repository, "web", [manifest.generation]);
  expect(await listReturnable(repository, undefined, never)).toMatchObject([
    { source: "web", generation: manifest.generation, lastModified: new Date() },
  ]);
  for (let time = 0; time < 5; time++) {
    forward(4 * HOUR);
    await runPrune(repository);
  }
  const name = await resolveForgotten(repository, manifest.generation.slice(0, -4).toUpperCase(), never);
  expect(await restoreGeneration(repository, name, never)).toMatchObject({ manifest, before: false });
  expect(store.bytes(key).equals(stored)).toBe(true);
  expectSame(await backups.restore(manifest.disks[0]!), diskOf(numbers(1, 9)).bytes);
  expect(await listReturnable(repository, "web", never)).toEqual([]);
  expect(await restoreGeneration(repository, name, never)).toMatchObject({ before: true });

  // forgotten once more, the time counts anew
  forward(3 * HOUR);
  await forgetThem(repository, "web", [manifest.generation]);
  forward(23 * HOUR);
  expect(await runPrune(repository)).toMatchObject({ forgotten: 1, condemned: { packs: 0 } });
  forward(2 * HOUR);
  expect(await runPrune(repository)).toMatchObject({ forgotten: 0, condemned: { packs: 3 } });
  await expect(resolveForgotten(repository, manifest.generation, never)).rejects.toMatchObject({
    kind: "notFound",
    code: "E_NOT_FORGOTTEN",
  });
});

test("what is lost by itself does not come back, and nothing is left of the attempt", async () => {
  const backups = await newBackups({ packChunks: 4 });
  const { repository, store } = backups;
  const { manifest } = await backups.backup([diskOf(numbers(1, 9))]);
  await forgetThem(repository, "web", [manifest.generation]);
  const whole = new Map(store.objects);
  for (const prefix of ["packs/", "layers/"]) {
    store.objects.delete([...store.objects.keys()].find((key) => key.startsWith(prefix))!);
    await expect(restoreGeneration(repository, manifest, never)).rejects.toMatchObject({
      code: "E_TOO_LATE",
    });
    expect(await backups.generations()).toEqual([]);
    for (const [key, object] of whole) store.objects.set(key, object);
  }
  store.bytes(forgottenKey("web", manifest.generation))[60]! ^= 1;
  await expect(restoreGeneration(repository, manifest, never)).rejects.toMatchObject({ kind: "corrupt" });
  expect(await backups.generations()).toEqual([]);
});

test("a store that fails in between leaves nothing, or what was there before", async () => {
  const backups = await newBackups();
  const { manifest } = await backups.backup([diskOf(numbers(1, 9))]);
  await forgetThem(backups.repository, "web", [manifest.generation]);
  const faulty = (): FaultyStore =>
    new FaultyStore(backups.store, { operation: "list", key: /^packs/, kind: "before" });
  const attempt = (): Promise<unknown> =>
    restoreGeneration({ ...backups.repository, store: faulty() }, manifest, never);
  await expect(attempt()).rejects.toMatchObject({ code: "E_STORE" });
  expect(await backups.generations()).toEqual([]);
  await restoreGeneration(backups.repository, manifest, never);
  await expect(attempt()).rejects.toMatchObject({ code: "E_STORE" });
  expect(await backups.generations()).toHaveLength(1);
});

test("of several that begin alike the user is asked which", async () => {
  const backups = await newBackups();
  const one = await backups.backup([diskOf(numbers(1, 3))]);
  const two = await backups.backup([diskOf(numbers(1, 4))]);
  await forgetThem(backups.repository, "web", [one.manifest.generation, two.manifest.generation]);
  const common = one.manifest.generation.slice(0, 6);
  await expect(resolveForgotten(backups.repository, common, never)).rejects.toMatchObject({
    kind: "usage",
    code: "E_GENERATION_AMBIGUOUS",
  });
});
