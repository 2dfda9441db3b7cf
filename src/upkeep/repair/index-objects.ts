import { mapOrdered } from "../../flow/map-ordered.ts";
import { readCondemned, type Condemned } from "../../repository/condemned.ts";
import type { Repository } from "../../repository/config.ts";
import { IndexWriter, readIndexObject, type IndexedPack } from "../../repository/index-objects.ts";
import { openLayer } from "../../repository/layer-reader.ts";
import type { LayerRef } from "../../repository/layer-writer.ts";
import type { Manifest } from "../../repository/manifest.ts";
import { parseKey, Prefix } from "../../repository/names.ts";
import type { PackRef } from "../../repository/pack-directory.ts";
import { fetchStoredDirectory } from "../../repository/stored-directory.ts";
import type { ReadTools } from "../../repository/read-tools.ts";
import { attempt } from "../verify/problems.ts";
import type { RepairStep } from "./actions.ts";

/** Directories fetched at once. */
const GETS = 6;

/**
 * Makes anew what `index/` has lost: every pack that a generation names and no readable index object lists is entered
 * under the first source that uses it. Only then index objects that cannot be read are removed.
 *
 * Packs that no generation names stay out: they may belong to a backup that goes on, or wait for a prune.
 */
export async function repairIndex(
  manifests: readonly Manifest[],
  tools: ReadTools,
  { dryRun, act }: RepairStep,
  run: AbortController,
): Promise<void> {
  const { repository } = tools;
  const { signal } = run;
  const { listed, unreadable } = await readIndex(repository, signal);
  const condemned = await condemnedPacks(repository, signal);
  const missing = new Map<string, PackRef[]>();
  for await (const { source, packRef } of namedPacks(manifests, repository, signal)) {
    if (listed.has(packRef.pack) || condemned.has(packRef.pack)) continue;
    listed.add(packRef.pack);
    missing.set(source, [...(missing.get(source) ?? []), packRef]);
  }
  for (const [source, refs] of missing) {
    const writer = new IndexWriter(repository, source, {
      onWritten: (object, packs) =>
        act({ action: "write", object, why: `lists ${packs.length} packs that no index object listed` }),
    });
    let found = 0;
    const loads = mapOrdered(refs, GETS, run, (ref, each) => indexedPack(ref, tools, each));
    for await (const pack of loads) {
      if (pack === undefined) continue; // what is lost with it, the check afterwards tells
      found++;
      if (!dryRun) await writer.add(pack, signal);
    }
    await writer.flush(signal);
    if (dryRun && found > 0) {
      const why = `to list ${found} packs that no index object lists`;
      act({ action: "write", object: `${Prefix.index}${source}/`, why });
    }
  }
  for (const [key, why] of unreadable) {
    if (!dryRun) await repository.store.delete([key], signal);
    act({ action: "remove", object: key, why });
  }
}

async function readIndex(
  repository: Repository,
  signal: AbortSignal,
): Promise<{ listed: Set<string>; unreadable: Map<string, string> }> {
  const listed = new Set<string>();
  const unreadable = new Map<string, string>();
  for await (const { key } of repository.store.list(Prefix.index, signal)) {
    if (parseKey(key)?.type !== "index") continue;
    const read = async (): Promise<string[]> => {
      const packs: string[] = [];
      for (const { pack } of await readIndexObject(repository, key, signal)) packs.push(pack);
      return packs;
    };
    const first = await attempt(read, signal);
    const checked = first.damage === undefined ? first : await attempt(read, signal);
    for (const pack of checked.value ?? []) listed.add(pack);
    const { damage } = checked;
    if (damage !== undefined && damage.code !== "E_NO_OBJECT") unreadable.set(key, damage.message);
  }
  return { listed, unreadable };
}

/** A record that cannot be read is told elsewhere; what generations name is not condemned but by mistake. */
async function condemnedPacks(repository: Repository, signal: AbortSignal): Promise<Condemned["packs"]> {
  return (await attempt(() => readCondemned(repository, signal), signal)).value?.packs ?? new Set();
}

/** Every pack in the tables of the layers that can be read, each layer once; the same pack may come several times. */
async function* namedPacks(
  manifests: readonly Manifest[],
  repository: Repository,
  signal: AbortSignal,
): AsyncGenerator<{ source: string; packRef: PackRef }, void> {
  const seen = new Set<string>();
  for (const { source, disks } of manifests) {
    for (const ref of disks.flatMap(({ layers }) => layers)) {
      if (seen.has(ref.layer)) continue;
      seen.add(ref.layer);
      const packs = await attempt(() => packsOf(ref, repository, signal), signal);
      for (const packRef of packs.value ?? []) yield { source, packRef };
    }
  }
}

async function packsOf(ref: LayerRef, repository: Repository, signal: AbortSignal): Promise<PackRef[]> {
  const layer = await openLayer(repository, ref, signal);
  const packs: PackRef[] = [];
  for await (const packRef of layer.packs(signal)) packs.push(packRef);
  return packs;
}

/** A pack with its directory as it is stored, which layers and index objects name by its digest. */
async function indexedPack(
  ref: PackRef,
  { repository, directories }: ReadTools,
  signal: AbortSignal,
): Promise<IndexedPack | undefined> {
  const { value } = await attempt(async () => {
    await directories.get(ref, signal); // checks the size and the trailer too
    return await fetchStoredDirectory(repository, ref, signal);
  }, signal);
  return value && { pack: ref.pack, ...value };
}
