import { AppError, hasCode } from "../../errors.ts";
import type { Repository } from "../../repository/config.ts";
import { latestGeneration, listGenerationNames } from "../../repository/generations.ts";
import { readIndexObject } from "../../repository/index-objects.ts";
import { DiskMap } from "../../repository/layer-stack.ts";
import { parseKey, Prefix } from "../../repository/names.ts";
import type { PackToMove } from "./candidates.ts";

/** Packs whose blobs may share new packs: those of one source, so that its dedup index goes on listing its own alone. */
export interface MoveGroup {
  /** Undefined when no index lists the packs and no newest generation uses them. */
  readonly source: string | undefined;
  /** In the order in which the source's newest generation uses them, by disk and chunk; the others follow. */
  readonly packs: readonly PackToMove[];
}

/**
 * Puts packs in the order in which they are to be copied.
 *
 * Whole packs are ordered, and their slots are left as they are, which is the order of the disk that they were written
 * in: so each pack is read with few requests, and runs of a layer stay runs of a forward.
 *
 * Reads the index objects and the maps of every source's newest generation.
 *
 * @throws errors of layers (corrupt) and of the store.
 */
export async function moveOrder(
  repository: Repository,
  packs: readonly PackToMove[],
  signal: AbortSignal,
): Promise<MoveGroup[]> {
  const left = new Map(packs.map((one) => [one.packRef.pack, one]));
  const sources = await indexSources(repository, new Set(left.keys()), signal);
  const groups = new Map<string | undefined, PackToMove[]>();
  const place = (pack: string, user: string | undefined): void => {
    const one = left.get(pack);
    if (one === undefined) return;
    left.delete(pack);
    const source = sources.get(pack) ?? user;
    const group = groups.get(source);
    if (group === undefined) groups.set(source, [one]);
    else group.push(one);
  };
  const names = await listGenerationNames(repository, undefined, signal);
  for (const source of [...new Set(names.map((name) => name.source))].sort()) {
    if (left.size === 0) break;
    const latest = await latestGeneration(repository, source, signal);
    for (const disk of latest?.disks ?? []) {
      const map = await DiskMap.open(repository, disk, signal);
      for await (const { where } of map.runs(0, map.chunks, signal)) {
        if (where !== "zero") place(where.packRef.pack, source);
      }
    }
  }
  for (const pack of left.keys()) place(pack, undefined);
  return [...groups].map(([source, ofSource]) => ({ source, packs: ofSource }));
}

/** Whose index lists the packs, as far as that can be read. Reads every index object. */
export async function indexSources(
  repository: Repository,
  wanted: ReadonlySet<string>,
  signal: AbortSignal,
): Promise<ReadonlyMap<string, string>> {
  const found = new Map<string, string>();
  for await (const { key } of repository.store.list(Prefix.index, signal)) {
    const name = parseKey(key);
    if (name?.type !== "index") continue;
    try {
      for (const { pack } of await readIndexObject(repository, key, signal))
        if (wanted.has(pack) && !found.has(pack)) found.set(pack, name.source);
    } catch (error) {
      const damaged = error instanceof AppError && error.kind === "corrupt";
      if (!damaged && !hasCode(error, "E_NO_OBJECT")) throw error; // advice: what it listed is found another way
    }
  }
  return found;
}
