import type { Repository } from "../../repository/config.ts";
import { layerKey, packKey, Prefix, REPOSITORY_KEY } from "../../repository/names.ts";
import { extendLocks, lockedAgainstDeletion } from "../../repository/object-lock.ts";
import type { Forwarding } from "./forwarding.ts";
import type { Live } from "./mark.ts";
import type { DeadObject } from "./survey.ts";

/** Keys in memory at once. */
const BATCH_MAX = 1000;

/**
 * Locks anew what live generations reach, in a repository with Object Lock (FORMAT.md, "Object Lock"): a HEAD for each
 * object, and a PutObjectRetention for those with less than half of their time left. Costs nothing without Object Lock.
 *
 * What lives on elsewhere is left out, although it is mentioned: packs whose slots forwards cover, and forwards that add
 * nothing. Locked anew at each prune they could never go.
 *
 * @param condemned ids.
 * @returns how many were locked anew.
 */
export async function extendLiveLocks(
  repository: Repository,
  live: Live,
  forwarding: Forwarding,
  condemned: ReadonlySet<string>,
  signal: AbortSignal,
): Promise<number> {
  if (repository.config.objectLock === undefined) return 0;
  let extended = 0;
  let batch: string[] = [];
  const finish = async (): Promise<void> => {
    extended += await extendLocks(repository, batch, signal);
    batch = [];
  };
  for await (const key of liveKeys(repository, live, forwarding, condemned, signal)) {
    if (batch.push(key) === BATCH_MAX) await finish();
  }
  await finish();
  return extended;
}

/** Packs that were lost are among them: nobody minds. */
async function* liveKeys(
  repository: Repository,
  live: Live,
  forwarding: Forwarding,
  condemned: ReadonlySet<string>,
  signal: AbortSignal,
): AsyncGenerator<string> {
  yield REPOSITORY_KEY;
  const unneeded = new Set(forwarding.unneeded(condemned).map(({ key }) => key));
  for (const prefix of [Prefix.keys, Prefix.generations, Prefix.forwards])
    for await (const { key } of repository.store.list(prefix, signal)) if (!unneeded.has(key)) yield key;
  for (const layer of live.layers) yield layerKey(layer);
  for (const { packRef } of live.packs.packs())
    if (!forwarding.covers(packRef.pack)) yield packKey(packRef.pack);
}

/** Those that a deletion would only hide: they wait until their locks end. */
export async function withoutLocked(
  repository: Repository,
  dead: readonly DeadObject[],
  signal: AbortSignal,
): Promise<readonly DeadObject[]> {
  const keys = dead.map(({ key }) => key);
  const locked = await lockedAgainstDeletion(repository, keys, signal);
  return dead.filter(({ key }) => !locked.has(key));
}
