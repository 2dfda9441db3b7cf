import type { Repository } from "../../repository/config.ts";
import type { CondemnedRecord } from "../../repository/condemned.ts";
import { condemnedKey, drillKey, parseKey, Prefix, uuidTime } from "../../repository/names.ts";
import type { Live } from "./mark.ts";
import type { Roots } from "./roots.ts";
import type { Survey } from "./survey.ts";

const DAY_MS = 24 * 3_600_000;

/** A lease that was not renewed for so long is nobody's; far more than any lease lasts. */
const LEASE_DEAD_MS = DAY_MS;

/** Reports of runs stay so long, or as long as the generation that the run made. */
const RUNS_KEPT_MS = 30 * DAY_MS;

/** A source that was not served for so long boots otherwise by now. */
const PROFILES_KEPT_MS = 90 * DAY_MS;

/** How much longer than what they name the records of condemned objects stay, for runs that were taken for dead. */
const TOMBSTONE_MS = 7 * DAY_MS;

/** Small objects that have no use any more, by kind: keys (FORMAT.md, "Collection", says when each may go). */
export interface Litter {
  readonly runs: readonly string[];
  readonly leases: readonly string[];
  readonly damaged: readonly string[];
  readonly condemned: readonly string[];
  readonly profiles: readonly string[];
}

export interface TidyFacts {
  readonly now: Date;
  /** R7: nothing younger goes. */
  readonly limit: Date;
  readonly live: Live;
  readonly roots: Roots;
  readonly records: readonly CondemnedRecord[];
  readonly found: Survey;
}

/** Packs that records of damage name, by LIST. */
export async function damagedPacks(
  repository: Repository,
  signal: AbortSignal,
): Promise<ReadonlySet<string>> {
  const packs = new Set<string>();
  for await (const { key } of repository.store.list(Prefix.damaged, signal)) {
    const name = parseKey(key);
    if (name?.type === "damaged") packs.add(name.pack);
  }
  return packs;
}

/** What may go, by LIST alone. */
export async function findLitter(
  repository: Repository,
  facts: TidyFacts,
  signal: AbortSignal,
): Promise<Litter> {
  return {
    runs: await oldRuns(repository, facts, signal),
    leases: await deadLeases(repository, facts, signal),
    damaged: await recordsOfGonePacks(repository, facts, signal),
    condemned: tombstones(facts),
    profiles: await oldProfiles(repository, facts, signal),
  };
}

/**
 * Begin and end records, the ends first: a begin without an end is a run that died, an end alone would be nothing. And
 * records of drills, but for the last one of each source: it says since when nobody has tried.
 */
async function oldRuns(
  repository: Repository,
  { now, limit, roots }: TidyFacts,
  signal: AbortSignal,
): Promise<string[]> {
  const before = Math.min(limit.getTime(), now.getTime() - RUNS_KEPT_MS);
  const alive = new Set(roots.liveRuns.map(({ run }) => run));
  const old: string[] = [];
  const lastDrills = new Map<string, string>();
  for await (const { key } of repository.store.list(Prefix.runs, signal)) {
    const name = parseKey(key);
    if (name?.type === "drill") {
      const known = lastDrills.get(name.source);
      const [older, newer] =
        known === undefined || known < name.drill ? [known, name.drill] : [name.drill, known];
      lastDrills.set(name.source, newer);
      if (older !== undefined && (uuidTime(older) ?? Infinity) <= before)
        old.push(drillKey(name.source, older));
      continue;
    }
    if (name?.type !== "runBegin" && name?.type !== "runEnd") continue;
    if (roots.makers.has(name.run) || alive.has(name.run)) continue;
    if ((uuidTime(name.run) ?? Infinity) <= before) old.push(key);
  }
  return old;
}

async function deadLeases(
  repository: Repository,
  { now }: TidyFacts,
  signal: AbortSignal,
): Promise<string[]> {
  const dead: string[] = [];
  for await (const { key, lastModified } of repository.store.list(Prefix.leases, signal)) {
    if (parseKey(key)?.type !== "lease") continue;
    if (now.getTime() - lastModified.getTime() > LEASE_DEAD_MS) dead.push(key);
  }
  return dead;
}

async function oldProfiles(
  repository: Repository,
  { now }: TidyFacts,
  signal: AbortSignal,
): Promise<string[]> {
  const old: string[] = [];
  for await (const { key, lastModified } of repository.store.list(Prefix.profiles, signal)) {
    if (parseKey(key)?.type !== "profile") continue;
    if (now.getTime() - lastModified.getTime() > PROFILES_KEPT_MS) old.push(key);
  }
  return old;
}

/** Records about a pack that is lost, but that generations name, stay: the next backup stores those chunks again (R12). */
async function recordsOfGonePacks(
  repository: Repository,
  { limit, live, found }: TidyFacts,
  signal: AbortSignal,
): Promise<string[]> {
  const gone: string[] = [];
  for await (const { key, lastModified } of repository.store.list(Prefix.damaged, signal)) {
    const name = parseKey(key);
    if (name?.type !== "damaged" || lastModified > limit) continue;
    if (!found.packsThere.has(name.pack) && !live.packs.has(name.pack)) gone.push(key);
  }
  return gone;
}

/** A record stays while anything that it names is there, and for some time afterwards. */
function tombstones({ limit, records, found }: TidyFacts): string[] {
  const before = limit.getTime() - TOMBSTONE_MS;
  return records
    .filter(({ since, packs, layers, forwards = [] }) => {
      if (Date.parse(since) > before) return false;
      return ![...packs, ...layers, ...forwards].some((id) => found.condemnedThere.has(id));
    })
    .map(({ prune }) => condemnedKey(prune));
}
