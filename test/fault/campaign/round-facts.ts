import type { SourceName } from "./plan.ts";

/** What is learnt during a round from its runs. */
export interface RoundFacts {
  /** Whether any of its runs forgets. */
  readonly forgets: boolean;
  /** Sources that a backup was begun of. */
  readonly backedUp: Set<SourceName>;
  /** Generations that a run said it had committed. */
  readonly reported: string[];
  /** Generations that were being restored: forgetting them is taken back. */
  readonly restored: Set<string>;
  /** Forgotten for certain. */
  readonly forgotten: Set<string>;
  /** Forgotten perhaps: the run did not get to tell. */
  readonly mayGo: Set<string>;
}

export function newFacts(forgets: boolean): RoundFacts {
  return {
    forgets,
    backedUp: new Set(),
    reported: [],
    restored: new Set(),
    forgotten: new Set(),
    mayGo: new Set(),
  };
}
