import { AppError, hasCode } from "../errors.ts";
import { mapOrdered } from "../flow/map-ordered.ts";
import type { Repository } from "./config.ts";
import {
  MANIFEST_SIZE_MAX,
  type Manifest,
  type StoredManifest,
  decodeManifest,
  encodeManifest,
} from "./manifest.ts";
import { Prefix, checkSourceName, generationKey, parseKey } from "./names.ts";

/** A generation as its key tells it. */
export interface GenerationName {
  readonly source: string;
  /** UUIDv7: dated by the moment its disks stood still. */
  readonly generation: string;
}

/** Manifests fetched at once. */
const GETS_MAX = 16;

/** How many of the newest ids `latestGeneration` looks at. */
const LATEST_WINDOW = 4;

/**
 * Every generation of one source, or of all, by LIST alone; sorted by source, then by age, oldest first.
 */
export async function listGenerationNames(
  repository: Repository,
  source: string | undefined,
  signal: AbortSignal,
): Promise<GenerationName[]> {
  const prefix =
    source === undefined ? Prefix.generations : `${Prefix.generations}${checkSourceName(source)}/`;
  const names: GenerationName[] = [];
  for await (const { key } of repository.store.list(prefix, signal)) {
    const name = parseKey(key);
    if (name?.type === "generation") names.push({ source: name.source, generation: name.generation });
  }
  return names.sort((a, b) => compareText(a.source, b.source) || compareText(a.generation, b.generation));
}

/**
 * The manifests of one source, or of all, sorted by source, then in the order of `compareGenerations`. One that is
 * deleted meanwhile is left out.
 *
 * @param onDamaged told of each that is damaged, which is then left out.
 * @throws AppError without `onDamaged`, for the first one that is damaged.
 */
export async function loadGenerations(
  repository: Repository,
  source: string | undefined,
  signal: AbortSignal,
  onDamaged?: (error: AppError, name: GenerationName) => void,
): Promise<StoredManifest[]> {
  const names = await listGenerationNames(repository, source, signal);
  const manifests = await loadAll(repository, names, signal, onDamaged);
  return manifests.sort((a, b) => compareText(a.source, b.source) || compareGenerations(a, b));
}

/**
 * A manifest.
 *
 * @param digest what a child's `parent.digest` says it must be, if it is read for a child.
 * @throws AppError E_NO_GENERATION (notFound); E_RECORD, E_SEAL, E_MISPLACED, E_MANIFEST_DIGEST (corrupt).
 */
export async function loadGeneration(
  repository: Repository,
  { source, generation }: GenerationName,
  signal: AbortSignal,
  digest?: string,
): Promise<StoredManifest> {
  const key = generationKey(source, generation);
  const loaded = decodeManifest(repository, source, generation, await fetchManifest(repository, key, signal));
  if (digest !== undefined && loaded.digest !== digest) {
    const message = `The manifest ${key} is not the one that the next generation was made from`;
    throw new AppError("corrupt", "E_MANIFEST_DIGEST", message, { key, digest, found: loaded.digest });
  }
  return loaded;
}

/** As `loadGeneration`; undefined when there is no such generation. */
export async function findGeneration(
  repository: Repository,
  name: GenerationName,
  signal: AbortSignal,
): Promise<StoredManifest | undefined> {
  try {
    return await loadGeneration(repository, name, signal);
  } catch (error) {
    if (hasCode(error, "E_NO_GENERATION")) return undefined;
    throw error;
  }
}

/**
 * The source's latest generation, or undefined. Order is by sequence; ids sort the same way but for a writer that
 * lost its lease and committed late, so a few of the newest ids are enough to look at.
 */
export async function latestGeneration(
  repository: Repository,
  source: string,
  signal: AbortSignal,
): Promise<StoredManifest | undefined> {
  const names = await listGenerationNames(repository, source, signal);
  const newest = await loadAll(repository, names.slice(-LATEST_WINDOW), signal);
  return newest.sort(compareGenerations).at(-1);
}

type InSequence = Pick<Manifest, "sequence" | "committedAt" | "generation">;

/** Order within a source (R22): by sequence, then by commit time; the id settles the rest. */
export function compareGenerations(a: InSequence, b: InSequence): number {
  return (
    a.sequence - b.sequence ||
    compareText(a.committedAt, b.committedAt) ||
    compareText(a.generation, b.generation)
  );
}

/**
 * Makes a generation visible: this is the commit.
 *
 * A lost reply is answered by reading back (R19): equal bytes are success.
 *
 * @throws AppError E_GENERATION_EXISTS (locked): other bytes are there; E_COMMIT_UNKNOWN (unavailable): it cannot
 *   be told whether the generation is there, so nothing that either case needs may be given up; anything else:
 *   it is not there.
 */
export async function commitGeneration(
  repository: Repository,
  manifest: Manifest,
  signal: AbortSignal,
): Promise<StoredManifest> {
  const { source, generation } = manifest;
  const key = generationKey(source, generation);
  const stored = encodeManifest(repository, manifest);
  try {
    await repository.store.put(key, stored, signal);
  } catch (error) {
    await settleDoubt(repository, key, stored, error, signal);
  }
  return decodeManifest(repository, source, generation, stored);
}

/** Returns when the manifest is there, equal; throws otherwise. */
async function settleDoubt(
  repository: Repository,
  key: string,
  stored: Buffer,
  error: unknown,
  signal: AbortSignal,
): Promise<void> {
  const taken = hasCode(error, "E_EXISTS");
  if (!taken && !(error instanceof AppError && error.retryable)) throw error;
  let there: Buffer;
  try {
    there = await repository.store.get(key, MANIFEST_SIZE_MAX, signal);
  } catch (second) {
    if (hasCode(second, "E_NO_OBJECT")) throw error;
    const message = `It is not known whether the generation ${key} was committed; run again when the store answers`;
    throw new AppError("unavailable", "E_COMMIT_UNKNOWN", message, { key }, error);
  }
  if (there.equals(stored)) return;
  throw new AppError(
    "locked",
    "E_GENERATION_EXISTS",
    `Another run wrote the generation ${key}`,
    { key },
    error,
  );
}

async function loadAll(
  repository: Repository,
  names: readonly GenerationName[],
  signal: AbortSignal,
  onDamaged?: (error: AppError, name: GenerationName) => void,
): Promise<StoredManifest[]> {
  const run = new AbortController();
  const onAbort = (): void => run.abort(signal.reason);
  signal.throwIfAborted();
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    const loads = mapOrdered(names, GETS_MAX, run, (name, each) =>
      loadGeneration(repository, name, each).catch((error: unknown) => {
        if (hasCode(error, "E_NO_GENERATION")) return undefined;
        if (onDamaged === undefined || !(error instanceof AppError) || error.kind !== "corrupt") throw error;
        onDamaged(error, name);
        return undefined;
      }),
    );
    const found: StoredManifest[] = [];
    for await (const manifest of loads) if (manifest !== undefined) found.push(manifest);
    return found;
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}

async function fetchManifest(repository: Repository, key: string, signal: AbortSignal): Promise<Buffer> {
  try {
    return await repository.store.get(key, MANIFEST_SIZE_MAX, signal);
  } catch (error) {
    if (!hasCode(error, "E_NO_OBJECT")) throw error;
    throw new AppError("notFound", "E_NO_GENERATION", `There is no generation ${key}`, { key }, error);
  }
}

function compareText(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
