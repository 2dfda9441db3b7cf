import { AppError, hasCode } from "../../errors.ts";
import type { Repository } from "../../repository/config.ts";
import {
  encodeIndexObject,
  INDEX_OBJECT_MAX,
  decodeIndexedPacks,
  type IndexedPack,
} from "../../repository/index-objects.ts";
import { indexKey, newUuid, parseKey, Prefix } from "../../repository/names.ts";

/**
 * Takes packs out of the dedup index: each index object that lists any of them is replaced by one that does not, the new
 * one first. So no run that begins from then on finds a duplicate there (R5).
 *
 * Reads every index object, one at a time. One that is damaged stays: it is advice, and what it may list is condemned.
 *
 * @returns how many objects were replaced.
 */
export async function takeOutOfIndex(
  repository: Repository,
  packs: ReadonlySet<string>,
  warn: (message: string) => void,
  signal: AbortSignal,
): Promise<number> {
  const { store } = repository;
  const keys: string[] = [];
  for await (const { key } of store.list(Prefix.index, signal)) keys.push(key); // before any is added
  let replaced = 0;
  for (const key of keys) {
    const name = parseKey(key);
    if (name?.type !== "index") continue;
    const left = await packsLeft(repository, key, packs, warn, signal);
    if (left === undefined) continue;
    if (left.length > 0) {
      const fresh = indexKey(name.source, newUuid());
      await store.put(fresh, encodeIndexObject(repository, fresh, left), signal);
    }
    await store.delete([key], signal);
    replaced++;
  }
  return replaced;
}

/** What an index object lists besides `packs`; undefined when it lists none of them, is gone, or is damaged. */
async function packsLeft(
  repository: Repository,
  key: string,
  packs: ReadonlySet<string>,
  warn: (message: string) => void,
  signal: AbortSignal,
): Promise<IndexedPack[] | undefined> {
  try {
    const bytes = await repository.store.get(key, INDEX_OBJECT_MAX, signal);
    const all = [...decodeIndexedPacks(repository, key, bytes)];
    const left = all.filter(({ pack }) => !packs.has(pack));
    return left.length === all.length ? undefined : left;
  } catch (error) {
    if (hasCode(error, "E_NO_OBJECT")) return undefined; // another prune was quicker
    if (!(error instanceof AppError) || error.kind !== "corrupt") throw error;
    warn(`${error.message}; it is left as it is`);
    return undefined;
  }
}
