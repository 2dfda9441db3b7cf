import { AppError } from "../errors.ts";
import { compareGenerations } from "../repository/generations.ts";
import type { Manifest } from "../repository/manifest.ts";
import { PERIODS, parseDuration, type Calendar, type Period } from "./calendar.ts";

/** Which generations of a source are kept. A rule that is not there keeps nothing. */
export interface RetentionPolicy {
  /** The newest so many. */
  readonly last: number | undefined;
  /** The newest generation of each of so many hours, days, ISO weeks, months and years that have one. */
  readonly periods: Readonly<Record<Period, number | undefined>>;
  /** As `parseDuration` takes it: everything that is not older than the newest by more. */
  readonly within: string | undefined;
  /** Everything with one of these tags. */
  readonly tags: readonly (readonly [key: string, value: string])[];
}

/** What a policy goes by. */
export type RetentionSubject = Pick<
  Manifest,
  "generation" | "sequence" | "committedAt" | "frozenAt" | "tags"
>;

/** What becomes of a generation: it is kept when there is any reason. */
export interface Decision<G> {
  readonly manifest: G;
  /** For people, and in documents: "last 3", "daily 2026-11-22", "within 14d", "tag ticket=1", "held". */
  readonly reasons: readonly string[];
}

/** The newest generation is never forgotten by a policy: it is what the next backup stands on. */
export const NEWEST_REASON = "newest of its source";

/**
 * Refuses a policy that has no rule: it would forget everything but the newest, by omission.
 * @throws AppError E_NO_RULE (usage).
 */
export function checkPolicy({ last, periods, within, tags }: RetentionPolicy): void {
  const rules = [last, within, ...Object.values(periods)];
  if (rules.some((rule) => rule !== undefined) || tags.length > 0) return;
  const message = `Which generations are to be kept? Give at least one rule, as --keep-last 7, or the ids to forget`;
  throw new AppError("usage", "E_NO_RULE", message);
}

/**
 * Holds the generations of one source against a policy. Each rule looks at all of them, whatever others keep already,
 * and what any rule keeps is kept. Times are `frozenAt`, order is that of `compareGenerations`: where the two differ
 * (a clock went back), a period's newest is the one that comes last in order.
 *
 * @param generations of one source, in any order.
 * @param guarded why the policy has no say over some, by id: held, in use.
 * @param now `within` never counts from a later time, should the newest be dated ahead.
 * @returns oldest first.
 */
export function decideRetention<G extends RetentionSubject>(
  generations: readonly G[],
  policy: RetentionPolicy,
  calendar: Calendar,
  guarded: ReadonlyMap<string, readonly string[]>,
  now: Date,
): Decision<G>[] {
  const newestFirst = generations.toSorted((a, b) => compareGenerations(b, a));
  const reasons = new Map(newestFirst.map((manifest) => [manifest.generation, [] as string[]]));
  const keep = ({ generation }: G, reason: string): void => void reasons.get(generation)!.push(reason);

  for (const manifest of newestFirst.slice(0, policy.last ?? 0)) keep(manifest, `last ${policy.last!}`);
  for (const period of PERIODS) {
    const found = newestOfPeriods(newestFirst, period, policy.periods[period] ?? 0, calendar);
    for (const [name, manifest] of found) keep(manifest, `${period} ${name}`);
  }
  for (const manifest of within(newestFirst, policy.within, calendar, now)) {
    keep(manifest, `within ${policy.within!}`);
  }
  for (const manifest of newestFirst) {
    for (const [key, value] of policy.tags) {
      if (Object.hasOwn(manifest.tags, key) && manifest.tags[key] === value) {
        keep(manifest, `tag ${key}=${value}`);
      }
    }
    for (const why of guarded.get(manifest.generation) ?? []) keep(manifest, why);
  }
  if (newestFirst[0] !== undefined) keep(newestFirst[0], NEWEST_REASON);
  return newestFirst.map((manifest) => ({ manifest, reasons: reasons.get(manifest.generation)! })).reverse();
}

/** The first generation found in each of the first `count` periods that have one. */
function newestOfPeriods<G extends RetentionSubject>(
  newestFirst: readonly G[],
  period: Period,
  count: number,
  calendar: Calendar,
): ReadonlyMap<string, G> {
  const found = new Map<string, G>();
  for (const manifest of newestFirst) {
    if (found.size >= count) break;
    const name = calendar.periods(new Date(manifest.frozenAt))[period];
    if (!found.has(name)) found.set(name, manifest);
  }
  return found;
}

function within<G extends RetentionSubject>(
  newestFirst: readonly G[],
  duration: string | undefined,
  calendar: Calendar,
  now: Date,
): readonly G[] {
  const newest = newestFirst[0];
  if (duration === undefined || newest === undefined) return [];
  const end = Math.min(Date.parse(newest.frozenAt), now.getTime());
  const start = calendar.before(new Date(end), parseDuration(duration)).getTime();
  return newestFirst.filter(({ frozenAt }) => Date.parse(frozenAt) >= start);
}
