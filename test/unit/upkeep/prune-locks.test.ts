import { beforeEach, expect, test } from "vitest";
import { loadGenerations } from "../../../src/repository/generations.ts";
import type { LockingStore } from "../../../src/store/object-lock.ts";
import type { ObjectInfo, Retention } from "../../../src/store/store.ts";
import { MemoryStore } from "../../support/memory-store.ts";
import { planByName } from "../../../src/upkeep/plan-forget.ts";
import { DAY, forward, LOOKUP, runPrune, stopClock } from "../../support/prunes.ts";
import { ALL, expectAllRestore, keysOf, thinPacks } from "../../support/thin-packs.ts";

beforeEach(stopClock);

/** A store in memory with locks that nobody can end; it takes them over from another store's objects. */
class LockingMemoryStore extends MemoryStore implements LockingStore {
  readonly locks = new Map<string, Retention>();
  /** False: as to credentials that may not see locks. */
  tells = true;

  checkObjectLock(): Promise<void> {
    return Promise.resolve();
  }

  withLocks(): LockingStore {
    return this;
  }

  override async head(key: string, signal: AbortSignal): Promise<ObjectInfo | undefined> {
    const info = await super.head(key, signal);
    // all were locked once, as they were written
    const retention = this.locks.get(key) ?? { mode: "compliance", until: new Date(0) };
    return info && (this.tells ? { ...info, retention } : info);
  }

  extendRetention(key: string, retention: Retention): Promise<void> {
    this.locks.set(key, retention);
    return Promise.resolve();
  }
}

/** Thin packs, in a repository with locks. */
async function lockedPacks() {
  const { backups, thin, contents } = await thinPacks();
  const store = new LockingMemoryStore();
  for (const [key, object] of backups.store.objects) store.objects.set(key, object);
  const config = { ...backups.repository.config, objectLock: { mode: "compliance", days: 30 } } as const;
  return { backups, thin, contents, store, repository: { ...backups.repository, config, store } };
}

test("who may not see locks deletes nothing: what is locked would only be hidden", async () => {
  const { store, repository } = await lockedPacks();
  await runPrune(repository, { rewrite: ALL });
  forward(40 * DAY);
  store.tells = false;
  const before = new Set(store.objects.keys());
  const hidden = { kind: "credentials", code: "E_LOCKS_HIDDEN" };
  await expect(runPrune(repository)).rejects.toMatchObject(hidden);
  const [manifest] = await loadGenerations(repository, undefined, new AbortController().signal);
  await expect(
    planByName(repository, [manifest!.generation], LOOKUP, new AbortController().signal),
  ).rejects.toMatchObject(hidden);
  const packs = [...before].filter((key) => /^(packs|layers|generations|forwards)\//.test(key));
  expect(packs.filter((key) => !store.objects.has(key))).toEqual([]);
});

test("what lives on elsewhere is not locked anew, so that it goes when its lock ends", async () => {
  const { backups, thin, contents, store, repository } = await lockedPacks();
  const prune = () => runPrune(repository, { rewrite: ALL });
  const locked = () => thin.filter((key) => store.locks.has(key));
  const days = async (count: number): Promise<void> => {
    for (let day = 0; day < count; day += 10) {
      forward(10 * DAY);
      await prune();
    }
  };

  expect((await prune()).rewritten.packs).toBe(3);
  expect(locked(), "they were in use when it began").toEqual(thin);
  await days(20);
  expect(
    thin.filter((key) => store.objects.has(key)),
    "locked",
  ).toEqual(thin);
  await days(30);
  expect(thin.filter((key) => store.objects.has(key))).toEqual([]);
  backups.store.objects.clear();
  for (const [key, object] of store.objects) backups.store.objects.set(key, object);
  await expectAllRestore(backups, contents);
  const now = Date.now();
  for (const key of [...keysOf(backups, "packs/"), ...keysOf(backups, "forwards/")])
    expect(store.locks.get(key)!.until.getTime(), key).toBeGreaterThanOrEqual(now + 15 * DAY);
});
