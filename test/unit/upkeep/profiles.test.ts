import { beforeEach, expect, test } from "vitest";
import { profileKey } from "../../../src/repository/names.ts";
import { loadProfile, storeProfile } from "../../../src/repository/profiles.ts";
import { DAY, forward, runPrune, stopClock } from "../../support/prunes.ts";
import { diskOf, newBackups, numbers } from "../backup/chunks.ts";

const never = new AbortController().signal;

beforeEach(stopClock);

test("a prune leaves a profile alone, until nobody has served the source for 90 days", async () => {
  const backups = await newBackups();
  const { repository } = backups;
  const { manifest } = await backups.backup([diskOf(numbers(1, 9))]);
  const { source, generation } = manifest;
  await storeProfile(repository, { source, generation, disks: ["vda"], reads: [[0, 0, 3]] }, [], never);
  forward(89 * DAY);
  expect(await runPrune(repository)).toMatchObject({ tidied: { profiles: 0 } });
  expect((await loadProfile(repository, source, never)).profile).toMatchObject({ reads: [[0, 0, 3]] });
  forward(2 * DAY);
  expect(await runPrune(repository, { dryRun: true })).toMatchObject({ tidied: { profiles: 1 } });
  expect(await runPrune(repository)).toMatchObject({ tidied: { profiles: 1 } });
  expect(await loadProfile(repository, source, never)).toEqual({ profile: undefined, keys: [] });
});

test("verify reads profiles, and says that one that is damaged costs nothing but time", async () => {
  const backups = await newBackups();
  const { repository, store } = backups;
  const { manifest } = await backups.backup([diskOf(numbers(1, 9))]);
  const { source, generation } = manifest;
  await storeProfile(repository, { source, generation, disks: ["vda"], reads: [[0, 0, 3]] }, [], never);
  expect((await backups.verify()).problems).toEqual([]);
  const key = [...store.objects.keys()].find((name) => name.startsWith(profileKey(source, "").slice(0, -5)))!;
  store.bytes(key)[40]! ^= 1;
  const { problems } = await backups.verify();
  expect(problems).toHaveLength(1);
  expect(JSON.stringify(problems)).toContain("the next serve writes it anew");
});
