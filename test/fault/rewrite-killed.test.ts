import { beforeEach, expect, test, vi } from "vitest";
import { AppError } from "../../src/errors.ts";
import { HookedStore } from "../support/hooked-store.ts";
import { MemoryStore } from "../support/memory-store.ts";
import { DAY, forward, HOUR, runPrune, stopClock } from "../support/prunes.ts";
import {
  ALL,
  chainedPacks,
  expectAllRestore,
  expectNothingLeft,
  rewriteAll,
  thinAgain,
  thinPacks,
  type TestBackups,
  type ThinRepository,
} from "../support/thin-packs.ts";
import { diskOf, newBackups } from "../unit/backup/chunks.ts";

beforeEach(stopClock);

/** A store as a killed program sees it: nothing happens any more from some operation on. */
function dyingAt(
  store: TestBackups["store"],
  operations: number,
): { store: HookedStore; count: () => number } {
  let done = 0;
  const before = (): void => {
    if (++done > operations) throw new AppError("unavailable", "E_STORE", "killed");
  };
  return { store: new HookedStore(store, { before }), count: () => done };
}

function copyOf(store: TestBackups["store"]): TestBackups["store"] {
  const copy = new MemoryStore();
  for (const [key, { bytes, lastModified }] of store.objects)
    copy.objects.set(key, { bytes: Buffer.from(bytes), lastModified });
  return copy;
}

test.each([
  ["packs are rewritten", () => thinPacks()],
  ["rewritten packs are deleted", deletedPacks],
  ["a new pack is rewritten", thinAgain],
  ["a chain of forwards is made straight", chainedPacks],
])(
  "killed at any operation while %s: the next ones finish, nothing is lost or left over",
  { timeout: 120_000 },
  async (_, begin) => {
    const { backups, contents } = await begin();
    const began = Date.now();
    const whole = dyingAt(copyOf(backups.store), Infinity);
    await runPrune({ ...backups.repository, store: whole.store }, { rewrite: ALL });
    expect(whole.count()).toBeGreaterThan(20);
    for (let operation = 0; operation < whole.count(); operation++) {
      vi.setSystemTime(began);
      await killAndGoOn(copyOf(backups.store), operation, contents, operation < whole.count() - 2);
    }
  },
);

async function deletedPacks(): Promise<ThinRepository> {
  const thin = await thinPacks();
  await rewriteAll(thin.backups);
  forward(25 * HOUR);
  return thin;
}

/** @param early true when the prune cannot be done with so few operations. */
async function killAndGoOn(
  store: TestBackups["store"],
  operations: number,
  contents: ReadonlyMap<string, readonly number[]>,
  early: boolean,
): Promise<void> {
  const backups = await newBackups({ packChunks: 5, store });
  const { repository } = backups;
  const dying = dyingAt(store, operations).store;
  const options = { rewrite: ALL, warn: () => undefined };
  const outcome: unknown = await runPrune({ ...repository, store: dying }, options).catch(
    (error: unknown) => error,
  );
  if (early) expect(outcome, `${operations}`).toBeInstanceOf(AppError);
  await expectAllRestore(backups, contents);
  const lookup = { graceMs: DAY, isGone: () => true };
  for (let time = 0; time < 4; time++) {
    forward(25 * HOUR);
    await runPrune(repository, { rewrite: ALL, lookup });
  }
  await expectAllRestore(backups, contents);
  await expectNothingLeft(backups);
  if (store.uploads.size === 0) return;
  await backups.backup([diskOf([7])], { source: "other" }); // clears the uploads of the dead
  expect(store.uploads.size, `${operations}`).toBe(0);
}
