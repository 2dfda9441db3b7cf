import type { Repository } from "../../repository/config.ts";
import { layerKey, packKey, Prefix, REPOSITORY_KEY } from "../../repository/names.ts";
import { extendLocks, lockedUntil } from "../../repository/object-lock.ts";
import type { Live } from "./mark.ts";
import type { DeadObject } from "./survey.ts";

/** Keys in memory at once. */
const BATCH_MAX = 1000;

/**
 * Locks anew what live generations reach, in a repository with Object Lock (FORMAT.md, "Object Lock"): a HEAD for each
 * object, and a PutObjectRetention for those with less than half of their time left. Costs nothing without Object Lock.
 *
 * @returns how many were locked anew.
 */
export async function extendLiveLocks(
  repository: Repository,
  live: Live,
  signal: AbortSignal,
): Promise<number> {
  if (repository.config.objectLock === undefined) return 0;
  let extended = 0;
  let batch: string[] = [];
  const finish = async (): Promise<void> => {
    extended += await extendLocks(repository, batch, signal);
    batch = [];
  };
  for await (const key of liveKeys(repository, live, signal)) {
    if (batch.push(key) === BATCH_MAX) await finish();
  }
  await finish();
  return extended;
}

/** Packs that were rewritten are among them, and gone: nobody minds. */
async function* liveKeys(repository: Repository, live: Live, signal: AbortSignal): AsyncGenerator<string> {
  yield REPOSITORY_KEY;
  for (const prefix of [Prefix.keys, Prefix.generations, Prefix.forwards])
    for await (const { key } of repository.store.list(prefix, signal)) yield key;
  for (const layer of live.layers) yield layerKey(layer);
  for (const { packRef } of live.packs.packs()) yield packKey(packRef.pack);
}

/** Those that a deletion would only hide: they wait until their locks end. */
export async function withoutLocked(
  repository: Repository,
  dead: readonly DeadObject[],
  signal: AbortSignal,
): Promise<readonly DeadObject[]> {
  const keys = dead.map(({ key }) => key);
  const locked = await lockedUntil(repository, keys, signal);
  return dead.filter(({ key }) => !locked.has(key));
}
