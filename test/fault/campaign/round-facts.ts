import type { RoundPlan, SourceName } from "./plan.ts";

/** What is learnt during a round from its runs. */
export interface RoundFacts {
  /** Whether any of its runs forgets. */
  readonly forgets: boolean;
  /** Whether the repository has too little room, for all of them. */
  readonly narrow: boolean;
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
  /** Forgotten ones that a run was to bring back. */
  readonly mayCome: Set<string>;
}

export function newFacts({ runs }: RoundPlan): RoundFacts {
  return {
    forgets: runs.some(({ verb }) => verb === "forget"),
    narrow: runs.some(({ full }) => full?.what === "repository"),
    backedUp: new Set(),
    reported: [],
    restored: new Set(),
    forgotten: new Set(),
    mayGo: new Set(),
    mayCome: new Set(),
  };
}
