import { AppError } from "../errors.ts";
import type { Repository } from "./config.ts";
import { type GenerationName, latestGeneration, listGenerationNames, loadGeneration } from "./generations.ts";
import type { StoredManifest } from "./manifest.ts";
import { isSourceName, isUuid, uuidTime } from "./names.ts";

/** Candidates named in an error; the rest are counted. */
const NAMED_MAX = 8;

/** Of an id, at least so much must be given. */
const ID_PREFIX_MIN = 4;

const DAY_FORM = /^\d{4}-\d\d-\d\d$/;
const TIME_FORM = /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,3})?)?(Z|[+-]\d\d:\d\d)$/;

/**
 * The generation that a person means: an id, a unique beginning of one, `latest`, `NAME`, `NAME@latest` or
 * `NAME@2026-11-22T03:00Z` (the newest at or before that time; a day alone means its end, UTC). A source's name goes
 * before the beginning of an id.
 *
 * @throws AppError E_NO_GENERATION, E_NO_SOURCE (notFound), E_GENERATION_AMBIGUOUS, E_GENERATION_FORM (usage), which
 *   list what there is; E_RECORD and its like (corrupt).
 */
export async function resolveGeneration(
  repository: Repository,
  text: string,
  signal: AbortSignal,
): Promise<StoredManifest> {
  const at = text.lastIndexOf("@");
  if (at >= 0) return resolveInSource(repository, text.slice(0, at), text.slice(at + 1), signal);
  const names = await listGenerationNames(repository, undefined, signal);
  const sources = [...new Set(names.map(({ source }) => source))];
  if (text === "latest" && !sources.includes("latest")) {
    return latest(repository, onlySource(repository, sources), signal);
  }
  if (sources.includes(text)) return latest(repository, text, signal);
  return loadGeneration(repository, byId(repository, names, sources, text), signal);
}

async function resolveInSource(
  repository: Repository,
  source: string,
  when: string,
  signal: AbortSignal,
): Promise<StoredManifest> {
  if (!isSourceName(source)) throw formError(`${source}@${when}`);
  if (when === "latest") return latest(repository, source, signal);
  const time = parseTime(when);
  if (Number.isNaN(time)) throw formError(`${source}@${when}`);
  const names = await listGenerationNames(repository, source, signal);
  if (names.length === 0) throw await noSource(repository, source, signal);
  const chosen = names.findLast(({ generation }) => (uuidTime(generation) ?? Infinity) <= time);
  if (chosen !== undefined) return loadGeneration(repository, chosen, signal);
  throw new AppError(
    "notFound",
    "E_NO_GENERATION",
    `${source} has no generation at or before ${when}; its oldest is ${described(names[0]!)}`,
  );
}

/** Milliseconds since 1970, or NaN. */
function parseTime(text: string): number {
  if (DAY_FORM.test(text)) return Date.parse(`${text}T23:59:59.999Z`);
  return TIME_FORM.test(text) ? Date.parse(text) : NaN;
}

async function latest(repository: Repository, source: string, signal: AbortSignal): Promise<StoredManifest> {
  return (
    (await latestGeneration(repository, source, signal)) ??
    Promise.reject(await noSource(repository, source, signal))
  );
}

function onlySource(repository: Repository, sources: readonly string[]): string {
  if (sources.length === 1) return sources[0]!;
  if (sources.length === 0) throw emptyError(repository);
  const which = named(sources.map((source) => `${source}@latest`));
  throw new AppError("usage", "E_GENERATION_AMBIGUOUS", `There are several sources; say which: ${which}`);
}

function byId(
  repository: Repository,
  names: readonly GenerationName[],
  sources: readonly string[],
  text: string,
): GenerationName {
  if (names.length === 0) throw emptyError(repository);
  const prefix = text.toLowerCase();
  const found = names.filter(({ generation }) => generation.startsWith(prefix));
  if (found.length === 1 && (isUuid(prefix) || prefix.length >= ID_PREFIX_MIN)) return found[0]!;
  if (found.length > 0 && prefix.length > 0) {
    const message = `Several generations begin with ${text}: ${named(found.map(described))}`;
    throw new AppError("usage", "E_GENERATION_AMBIGUOUS", message);
  }
  const message = `No generation and no source is called "${text}"; there are ${named(sources)}`;
  throw new AppError("notFound", "E_NO_GENERATION", message);
}

async function noSource(repository: Repository, source: string, signal: AbortSignal): Promise<AppError> {
  const names = await listGenerationNames(repository, undefined, signal);
  if (names.length === 0) return emptyError(repository);
  const sources = [...new Set(names.map((name) => name.source))];
  return new AppError(
    "notFound",
    "E_NO_SOURCE",
    `No source is called "${source}"; there are ${named(sources)}`,
  );
}

function emptyError(repository: Repository): AppError {
  const message = `The repository ${repository.store.location} has no generations yet; run blockhaul backup first`;
  return new AppError("notFound", "E_NO_GENERATION", message);
}

function formError(text: string): AppError {
  return new AppError(
    "usage",
    "E_GENERATION_FORM",
    `Not a generation: "${text}"; write NAME@latest or NAME@2026-11-22T03:00Z, with the time zone`,
  );
}

/** "web 0190… (2026-11-22T03:00:00.000Z)". */
function described({ source, generation }: GenerationName): string {
  return `${source} ${generation} (${new Date(uuidTime(generation) ?? 0).toISOString()})`;
}

function named(candidates: readonly string[]): string {
  const rest = candidates.length - NAMED_MAX;
  return candidates.slice(0, NAMED_MAX).join(", ") + (rest > 0 ? ` and ${rest} more` : "");
}
