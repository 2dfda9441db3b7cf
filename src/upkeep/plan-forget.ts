import { AppError } from "../errors.ts";
import type { Repository } from "../repository/config.ts";
import {
  latestGeneration,
  listGenerationNames,
  loadGenerations,
  type GenerationName,
} from "../repository/generations.ts";
import type { StoredManifest } from "../repository/manifest.ts";
import { generationKey, isUuid, uuidTime } from "../repository/names.ts";
import { lockedAgainstDeletion } from "../repository/object-lock.ts";
import type { PinLookup } from "../repository/pins.ts";
import { resolveGeneration } from "../repository/resolve-generation.ts";
import type { Calendar } from "./calendar.ts";
import { guardReasons, readGuards, userOf } from "./guards.ts";
import { NEWEST_REASON, decideRetention, type RetentionPolicy } from "./retention.ts";

/** A generation, and why it stays or goes. */
export interface Judged extends GenerationName {
  /** When its disks stood still. */
  readonly frozenAt: string;
  /** SHA-256 of the manifest that was judged, hexadecimal; undefined for a damaged one. */
  readonly digest: string | undefined;
  readonly reasons: readonly string[];
}

/** What becomes of the generations of one source; oldest first. */
export interface SourcePlan {
  readonly source: string;
  readonly keep: readonly Judged[];
  readonly remove: readonly Judged[];
}

/**
 * What a policy keeps of each source.
 *
 * @param sources these only; none: all.
 * @param onDamaged told of manifests that cannot be read. They stay, and take no place that a good one could have.
 * @throws AppError E_NO_SOURCE (notFound).
 */
export async function planByPolicy(
  repository: Repository,
  sources: readonly string[],
  policy: RetentionPolicy,
  calendar: Calendar,
  lookup: PinLookup,
  signal: AbortSignal,
  onDamaged: (error: AppError) => void,
): Promise<SourcePlan[]> {
  const now = await repository.store.now(signal);
  const names = await listGenerationNames(repository, undefined, signal);
  const known = [...new Set(names.map(({ source }) => source))];
  const unknown = sources.find((source) => !known.includes(source));
  if (unknown !== undefined) {
    const message = `No source is called "${unknown}"; blockhaul list shows which there are`;
    throw new AppError("notFound", "E_NO_SOURCE", message, { source: unknown });
  }
  const plans: SourcePlan[] = [];
  for (const source of known.filter((one) => sources.length === 0 || sources.includes(one))) {
    const manifests = await loadGenerations(repository, source, signal, onDamaged);
    const guards = await readGuards(repository, source, lookup, signal);
    const guarded = new Map([...guards].map(([generation, guard]) => [generation, guardReasons(guard)]));
    const decisions = decideRetention(manifests, policy, calendar, guarded, now);
    const judged = decisions.map(({ manifest, reasons }) => judge(manifest, reasons));
    const keep = judged.filter(({ reasons }) => reasons.length > 0);
    const removable = judged.filter(({ reasons }) => reasons.length === 0);
    const locked = await locksOf(repository, removable, signal);
    const isLocked = ({ generation }: Judged): boolean => locked.has(generation);
    const stay = removable
      .filter(isLocked)
      .map((one) => ({ ...one, reasons: [`protected until ${locked.get(one.generation)!}`] }));
    const remove = removable
      .filter((one) => !isLocked(one))
      .map((one) => ({ ...one, reasons: ["no rule keeps it"] }));
    plans.push({ source, keep: inOrder([...keep, ...stay]), remove });
  }
  return plans;
}

/**
 * Generations that a person names, each in any form that `resolveGeneration` takes. The newest of a source goes only by
 * its id, and a damaged one only by its whole id.
 *
 * @throws AppError E_HELD, E_IN_USE (locked), E_NEWEST (usage), before anything is removed; those of `resolveGeneration`.
 */
export async function planByName(
  repository: Repository,
  texts: readonly string[],
  lookup: PinLookup,
  signal: AbortSignal,
): Promise<SourcePlan[]> {
  const named = new Map<string, Judged>();
  for (const text of texts) {
    const one = await resolveToForget(repository, text, signal);
    named.set(one.generation, one);
  }
  const plans: SourcePlan[] = [];
  for (const source of [...new Set([...named.values()].map((one) => one.source))].sort()) {
    const remove = [...named.values()].filter((one) => one.source === source);
    const guards = await readGuards(repository, source, lookup, signal);
    for (const { generation } of remove) {
      const guard = guards.get(generation);
      if (guard?.held === true) throw heldError({ source, generation });
      if (guard !== undefined) throw inUseError({ source, generation }, guard.pins.map(userOf).join(", "));
    }
    const [locked] = await locksOf(repository, remove, signal);
    if (locked !== undefined) throw protectedError({ source, generation: locked[0] }, locked[1]);
    plans.push({ source, keep: [], remove: inOrder(remove) });
  }
  return plans;
}

/** Of those whose manifests are locked (Object Lock): until when, by generation. */
async function locksOf(
  repository: Repository,
  judged: readonly Judged[],
  signal: AbortSignal,
): Promise<ReadonlyMap<string, string>> {
  const keys = new Map(
    judged.map(({ source, generation }) => [generationKey(source, generation), generation]),
  );
  const locked = await lockedAgainstDeletion(repository, [...keys.keys()], signal);
  return new Map([...locked].map(([key, until]) => [keys.get(key)!, until.toISOString()]));
}

function inOrder(judged: readonly Judged[]): Judged[] {
  return judged.toSorted((a, b) => (a.generation < b.generation ? -1 : 1));
}

async function resolveToForget(repository: Repository, text: string, signal: AbortSignal): Promise<Judged> {
  let manifest: StoredManifest;
  try {
    manifest = await resolveGeneration(repository, text, signal);
  } catch (error) {
    const damaged = error instanceof AppError && error.kind === "corrupt" && isUuid(text.toLowerCase());
    if (!damaged) throw error;
    const names = await listGenerationNames(repository, undefined, signal);
    const found = names.find(({ generation }) => generation === text.toLowerCase());
    if (found === undefined) throw error;
    const frozenAt = new Date(uuidTime(found.generation) ?? 0).toISOString();
    return { ...found, frozenAt, digest: undefined, reasons: ["asked for", "damaged"] };
  }
  const { source, generation } = manifest;
  const byId = text !== source && generation.startsWith(text.toLowerCase());
  const latest = await latestGeneration(repository, source, signal).catch((error: unknown) => {
    if (byId && error instanceof AppError && error.kind === "corrupt") return undefined;
    throw error;
  });
  if (latest?.generation !== generation) return judge(manifest, ["asked for"]);
  if (byId) return judge(manifest, ["asked for", NEWEST_REASON]);
  throw new AppError(
    "usage",
    "E_NEWEST",
    `${text} is the newest generation of ${source}, which the next backup stands on; to forget it all the same, give its id ${generation}`,
    { source, generation },
  );
}

function judge(manifest: StoredManifest, reasons: readonly string[]): Judged {
  const { source, generation, frozenAt, digest } = manifest;
  return { source, generation, frozenAt, digest, reasons };
}

function heldError({ source, generation }: GenerationName): AppError {
  const message = `Generation ${generation} of ${source} is held; run blockhaul release ${generation} first`;
  return new AppError("locked", "E_HELD", message, { source, generation });
}

function protectedError({ source, generation }: GenerationName, until: string): AppError {
  const message = `Generation ${generation} of ${source} is protected by Object Lock until ${until}; forget it then`;
  return new AppError("locked", "E_PROTECTED", message, { source, generation, until });
}

function inUseError({ source, generation }: GenerationName, users: string): AppError {
  const message = `Generation ${generation} of ${source} is in use by ${users}; forget it when that has ended`;
  return new AppError("locked", "E_IN_USE", message, { source, generation });
}
