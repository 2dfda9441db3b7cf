import { AppError, hasCode } from "../../errors.ts";
import type { Repository } from "../../repository/config.ts";
import { IndexWriter } from "../../repository/index-objects.ts";
import type { PackRef } from "../../repository/pack-directory.ts";
import { fetchStoredDirectory } from "../../repository/stored-directory.ts";
import { indexSources } from "./move-order.ts";

/** A pack that was copied by a run that died, and where to. */
export interface Adopted {
  readonly pack: string;
  readonly targets: readonly PackRef[];
}

/**
 * Lists new packs of a prune that died before it listed them, while the old ones are still listed and tell whose they are:
 * else duplicates of what was moved would never be found again.
 *
 * @throws errors of the store. A pack that is gone or damaged is passed over: the index is advice.
 */
export async function listAdopted(
  repository: Repository,
  adopted: readonly Adopted[],
  signal: AbortSignal,
): Promise<void> {
  if (adopted.length === 0) return;
  const wanted = adopted.flatMap(({ pack, targets }) => [pack, ...targets.map((target) => target.pack)]);
  const sources = await indexSources(repository, new Set(wanted), signal);
  const bySource = new Map<string, Map<string, PackRef>>();
  for (const { pack, targets } of adopted) {
    const source = sources.get(pack);
    if (source === undefined) continue;
    const missing = bySource.get(source) ?? new Map<string, PackRef>();
    for (const target of targets) if (!sources.has(target.pack)) missing.set(target.pack, target);
    bySource.set(source, missing);
  }
  for (const [source, packs] of bySource) {
    const index = new IndexWriter(repository, source);
    for (const ref of packs.values()) await addIfGood(repository, index, ref, signal);
    await index.flush(signal);
  }
}

async function addIfGood(
  repository: Repository,
  index: IndexWriter,
  ref: PackRef,
  signal: AbortSignal,
): Promise<void> {
  try {
    const found = await fetchStoredDirectory(repository, ref, signal);
    if (found !== undefined) await index.add({ pack: ref.pack, ...found }, signal);
  } catch (error) {
    if (!(error instanceof AppError) || (error.kind !== "corrupt" && !hasCode(error, "E_NO_OBJECT")))
      throw error;
  }
}
