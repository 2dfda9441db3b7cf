/**
 * Something that somebody should know of, for as long as it is so:
 *
 * - `late`         the newest generation of a source is older than its job allows, or there is none
 * - `failed`       the latest run of a source failed
 * - `died`         the latest run of a source ended without a word
 * - `uncovered`    a source that no job backs up
 * - `lease`        a lease that nobody renews: a host that died
 * - `uploads`      uploads that nobody ended: billed, and no good
 * - `damaged`      stored data that a verify found to be damaged
 * - `growth`       a generation brought far more than those before
 * - `entropy`      new data does not compress any more, as when it is encrypted by somebody
 * - `unreachable`  a repository that cannot be looked at
 * - `function`     a function of ours failed, or ran out of time or memory
 * - `agent`        an agent could not do what it was asked for, or its queue does not answer
 * - `letters`      messages that failed too often
 */
export type FindingKind =
  | "late"
  | "failed"
  | "died"
  | "uncovered"
  | "lease"
  | "uploads"
  | "damaged"
  | "growth"
  | "entropy"
  | "unreachable"
  | "function"
  | "agent"
  | "letters";

export interface Finding {
  readonly kind: FindingKind;
  /** Where it was found: a repository by its name in the file, "jobs", "functions", "agents", or "queues". */
  readonly place: string;
  /** What it is about, within the place: a source, a job, a queue; "" for the place itself. */
  readonly subject: string;
  /** A sentence for people; may change from one look to the next. */
  readonly message: string;
}

/** What makes a finding the same one, however its words change. */
export function idOf({ kind, place, subject }: Finding): string {
  return `${place}/${kind}/${subject}`;
}

/** What was found, and what could not be looked at this time. */
export interface Look {
  readonly findings: readonly Finding[];
  /** Places of which nothing is known now but that. */
  readonly unknown: readonly string[];
}

export interface Change {
  /** Findings that were not there the last time. */
  readonly come: readonly Finding[];
  /** Ids of those that are there no more. */
  readonly gone: readonly string[];
  /** What is to be remembered: since when, by id. */
  readonly state: Readonly<Record<string, string>>;
}

/**
 * What has changed since the last look. What was wrong in a place that cannot be looked at now is taken to be so still.
 *
 * @param before by id, since when. @param now as stands in the state of what is new.
 */
export function changeOf(
  { findings, unknown }: Look,
  before: Readonly<Record<string, string>>,
  now: Date,
): Change {
  const ids = new Set(findings.map(idOf));
  const kept = Object.keys(before).filter(
    (id) => !ids.has(id) && unknown.some((place) => id.startsWith(`${place}/`)),
  );
  const gone = Object.keys(before).filter((id) => !ids.has(id) && !kept.includes(id));
  const state = [...ids, ...kept].sort().map((id) => [id, before[id] ?? now.toISOString()] as const);
  return {
    come: findings.filter((finding) => before[idOf(finding)] === undefined),
    gone,
    state: Object.fromEntries(state),
  };
}
