import { AppError, hasCode } from "../../errors.ts";
import { mapOrdered } from "../../flow/map-ordered.ts";
import type { Repository } from "../../repository/config.ts";
import { findForgotten, listForgotten, type ForgottenName } from "../../repository/forgotten.ts";
import { findGeneration, listGenerationNames, type GenerationName } from "../../repository/generations.ts";
import type { LayerRef } from "../../repository/layer-writer.ts";
import type { Manifest } from "../../repository/manifest.ts";
import { forgottenKey, generationKey, parseKey, Prefix } from "../../repository/names.ts";
import { liveRuns, type PinLookup } from "../../repository/pins.ts";
import type { RunBegin } from "../../repository/runs.ts";

/** Manifests fetched at once. */
const GETS_MAX = 16;

/** A layer that some manifest names. */
export interface RootLayer {
  readonly ref: LayerRef;
  /** A manifest that names it, for errors: its key. */
  readonly namedBy: string;
  /** False when only forgotten generations name it: one that cannot be read costs nothing but their return. */
  readonly needed: boolean;
}

/** What the repository's content hangs on at one moment. */
export interface Roots {
  /** Manifests that were read, by key: generations, and those of forgotten ones that still count. */
  readonly generations: number;
  readonly forgotten: number;
  /** That have a generation. */
  readonly sources: number;
  /** By layer. */
  readonly layers: ReadonlyMap<string, RootLayer>;
  /** Runs that made one of these generations. */
  readonly makers: ReadonlySet<string>;
  readonly liveRuns: readonly RunBegin[];
  /** Records of forgotten generations that count no more. */
  readonly expired: readonly ForgottenName[];
}

export interface RootsOptions {
  /** Forgotten generations count while their record is younger than this. */
  readonly forgottenSince: Date;
  readonly lookup: PinLookup;
  readonly warn: (message: string) => void;
}

/**
 * Reads every manifest that counts: those of generations, of generations forgotten lately, and of generations under live
 * runs (R6), also when a `forget` died before it could put them back (R24).
 *
 * The order of the lists matters. Who forgets writes the record before the manifest goes, so manifests are listed before
 * records; a run writes its pin before it looks its generation up, so pins come last: what was forgotten before that is in
 * a record.
 *
 * @throws AppError E_PRUNE_UNREADABLE (corrupt): what a manifest says cannot be known, so nothing may be condemned.
 */
export async function readRoots(
  repository: Repository,
  options: RootsOptions,
  run: AbortController,
): Promise<Roots> {
  const found = new Collected();
  const names = await listGenerationNames(repository, undefined, run.signal);
  const manifests = mapOrdered(names, GETS_MAX, run, (name, signal) =>
    findGeneration(repository, name, signal).catch((error: unknown) => {
      throw unreadable(`manifest ${generationKey(name.source, name.generation)}`, error);
    }),
  );
  for await (const manifest of manifests) if (manifest !== undefined) found.add(manifest, true);

  const records = await listForgotten(repository, undefined, run.signal);
  const open = records.filter(({ generation }) => !found.has(generation));
  const counting = open.filter(({ lastModified }) => lastModified > options.forgottenSince);
  const kept = mapOrdered(counting, GETS_MAX, run, (name, signal) => readForgotten(repository, name, signal));
  for await (const manifest of kept) if (manifest !== undefined) found.add(manifest, false);

  const live = await allLiveRuns(repository, names, options.lookup, run.signal);
  const pinned = new Set<string>();
  for (const { source, pinned: generation } of live) {
    if (generation === null || pinned.has(generation)) continue;
    pinned.add(generation);
    if (!found.hasNeeded(generation))
      await addPinned(repository, { source, generation }, found, options, run.signal);
  }
  const expired = records.filter(
    ({ generation, lastModified }) => lastModified <= options.forgottenSince && !pinned.has(generation),
  );
  const sources = new Set(names.map(({ source }) => source)).size;
  return { ...found.counts, sources, layers: found.layers, makers: found.makers, liveRuns: live, expired };
}

/** What the manifests that were read name. */
class Collected {
  readonly layers = new Map<string, RootLayer>();
  readonly makers = new Set<string>();
  /** Whether it is needed, by generation. */
  readonly #generations = new Map<string, boolean>();

  get counts(): { generations: number; forgotten: number } {
    const all = [...this.#generations.values()];
    return {
      generations: all.filter((needed) => needed).length,
      forgotten: all.filter((needed) => !needed).length,
    };
  }

  has(generation: string): boolean {
    return this.#generations.has(generation);
  }

  hasNeeded(generation: string): boolean {
    return this.#generations.get(generation) === true;
  }

  add({ source, generation, run, disks }: Manifest, needed: boolean): void {
    this.#generations.set(generation, needed || this.hasNeeded(generation));
    this.makers.add(run);
    const namedBy = needed ? generationKey(source, generation) : forgottenKey(source, generation);
    for (const ref of disks.flatMap(({ layers }) => layers)) {
      const known = this.layers.get(ref.layer);
      if (known === undefined || (needed && !known.needed))
        this.layers.set(ref.layer, { ref, namedBy, needed });
    }
  }
}

/** Undefined for one that is gone or damaged: it cannot come back, and keeps nothing. */
async function readForgotten(
  repository: Repository,
  name: GenerationName,
  signal: AbortSignal,
): Promise<Manifest | undefined> {
  try {
    return (await findForgotten(repository, name, signal))?.manifest;
  } catch (error) {
    if (error instanceof AppError && error.kind === "corrupt") return undefined;
    throw error;
  }
}

/** A generation that is in use, although its manifest was not listed: it was forgotten, or has come meanwhile. */
async function addPinned(
  repository: Repository,
  name: GenerationName,
  found: Collected,
  { warn }: RootsOptions,
  signal: AbortSignal,
): Promise<void> {
  const { source, generation } = name;
  try {
    const manifest =
      (await findForgotten(repository, name, signal))?.manifest ??
      (await findGeneration(repository, name, signal));
    if (manifest !== undefined) {
      found.add(manifest, true);
      return;
    }
  } catch (error) {
    throw unreadable(`manifest of generation ${generation} of ${source}, which is in use,`, error);
  }
  warn(
    `Generation ${generation} of ${source} is in use, but nobody knows its manifest any more; what it alone needs may be condemned`,
  );
}

/** Of every source that has a generation or a run. */
async function allLiveRuns(
  repository: Repository,
  names: readonly GenerationName[],
  lookup: PinLookup,
  signal: AbortSignal,
): Promise<RunBegin[]> {
  const sources = new Set(names.map(({ source }) => source));
  for await (const { key } of repository.store.list(Prefix.runs, signal)) {
    const parsed = parseKey(key);
    if (parsed?.type === "runBegin") sources.add(parsed.source);
  }
  const live: RunBegin[] = [];
  for (const source of [...sources].sort())
    live.push(...(await liveRuns(repository, source, lookup, signal)));
  return live;
}

/** Of damage: why nothing is pruned, and what to do. Any other error as it is. */
export function unreadable(what: string, error: unknown): unknown {
  if (!(error instanceof AppError) || (error.kind !== "corrupt" && !hasCode(error, "E_NO_OBJECT")))
    return error;
  const message =
    `The ${what} cannot be read, so it cannot be told what is in use, and nothing is pruned: ${error.message}; ` +
    "run blockhaul verify, and forget the generations that are lost, by their ids";
  return new AppError("corrupt", "E_PRUNE_UNREADABLE", message, error.context, error);
}
