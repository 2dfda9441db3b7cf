import { AppError } from "../errors.ts";
import type { Repository } from "../repository/config.ts";
import { findForgotten, listForgotten, type ForgottenName } from "../repository/forgotten.ts";
import { listGenerationNames, type GenerationName } from "../repository/generations.ts";
import type { StoredManifest } from "../repository/manifest.ts";
import { forgottenKey, generationKey, isUuid, parseKey, Prefix } from "../repository/names.ts";
import { Forwarding } from "./prune/forwarding.ts";
import { markLayer } from "./prune/mark.ts";
import { PackMarks } from "./prune/pack-marks.ts";

/** Of an id, at least so much must be given. */
const ID_PREFIX_MIN = 4;

/** What taking back may take after a failure, milliseconds. */
const CLEANUP_MS = 30_000;

/** What was forgotten and is not back yet, oldest first within each source; by LIST alone. */
export async function listReturnable(
  repository: Repository,
  source: string | undefined,
  signal: AbortSignal,
): Promise<ForgottenName[]> {
  const records = await listForgotten(repository, source, signal);
  if (records.length === 0) return [];
  const names = await listGenerationNames(repository, source, signal);
  const there = new Set(names.map(({ generation }) => generation));
  return records.filter(({ generation }) => !there.has(generation));
}

/**
 * The forgotten generation that a person means.
 *
 * @param text an id, or a beginning of one that is unique among the forgotten.
 * @throws AppError E_NOT_FORGOTTEN (notFound), E_GENERATION_AMBIGUOUS (usage).
 */
export async function resolveForgotten(
  repository: Repository,
  text: string,
  signal: AbortSignal,
): Promise<GenerationName> {
  const prefix = text.toLowerCase();
  const records = await listForgotten(repository, undefined, signal);
  const found = records.filter(({ generation }) => generation.startsWith(prefix));
  if (found.length === 1 && (isUuid(prefix) || prefix.length >= ID_PREFIX_MIN)) return found[0]!;
  if (found.length > 0 && prefix.length > 0) {
    const message = `Several forgotten generations begin with ${text}; blockhaul list --forgotten shows them`;
    throw new AppError("usage", "E_GENERATION_AMBIGUOUS", message);
  }
  throw notForgotten(text);
}

/**
 * Brings a forgotten generation back: its manifest, byte for byte.
 *
 * The manifest is published first and its record looked up afterwards. A prune that no longer counts a forgotten
 * generation deletes the record first and lists manifests afterwards: so either the record is gone here, or that prune
 * finds the manifest. The record stays, for a prune to clear away.
 *
 * @returns the manifest, and whether it was there before.
 * @throws AppError E_NOT_FORGOTTEN, E_TOO_LATE (notFound): a prune was quicker; E_RECORD and its like (corrupt). Nothing
 *   was brought back then.
 */
export async function restoreGeneration(
  repository: Repository,
  name: GenerationName,
  signal: AbortSignal,
): Promise<{ readonly manifest: StoredManifest; readonly before: boolean }> {
  const { store } = repository;
  const { source, generation } = name;
  const found = await findForgotten(repository, name, signal);
  if (found === undefined) throw notForgotten(generation);
  const key = generationKey(source, generation);
  const before = (await store.head(key, signal)) !== undefined;
  try {
    await store.put(key, found.stored, signal);
    if ((await store.head(forgottenKey(source, generation), signal)) === undefined) {
      throw tooLate(generation, "a prune has just cleared it away");
    }
    await checkReach(repository, found.manifest, signal);
  } catch (error) {
    if (!before) await store.delete([key], AbortSignal.timeout(CLEANUP_MS));
    throw error;
  }
  return { manifest: found.manifest, before };
}

/** Every layer opens, and every pack that they mention is there, or was rewritten. */
async function checkReach(
  repository: Repository,
  manifest: StoredManifest,
  signal: AbortSignal,
): Promise<void> {
  const marks = new PackMarks();
  const refs = new Map(manifest.disks.flatMap(({ layers }) => layers.map((ref) => [ref.layer, ref])));
  for (const ref of refs.values()) {
    await markLayer(repository, ref, marks, signal).catch((error: unknown) => {
      if (!(error instanceof AppError) || error.kind !== "corrupt") throw error;
      throw tooLate(manifest.generation, error.message, error);
    });
  }
  const forwarding = new Forwarding(repository, marks, () => undefined);
  await forwarding.refresh(signal);
  const there = new Set<string>();
  for await (const { key } of repository.store.list(Prefix.packs, signal)) {
    const name = parseKey(key);
    if (name?.type === "pack" && marks.has(name.pack)) there.add(name.pack);
  }
  let gone = 0;
  for (const { packRef } of marks.packs()) {
    if (!there.has(packRef.pack) && !forwarding.covers(packRef.pack)) gone++;
  }
  if (gone === 0) return;
  throw tooLate(manifest.generation, `${gone} of the ${marks.size} packs it needs are gone`);
}

function notForgotten(text: string): AppError {
  const message = `No generation ${text} was forgotten lately; blockhaul list --forgotten shows what can be brought back`;
  return new AppError("notFound", "E_NOT_FORGOTTEN", message);
}

function tooLate(generation: string, why: string, cause?: unknown): AppError {
  const message = `Generation ${generation} cannot be brought back any more: ${why}`;
  return new AppError("notFound", "E_TOO_LATE", message, { generation }, cause);
}
