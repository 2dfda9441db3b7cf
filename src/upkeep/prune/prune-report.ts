import type { RequestCounts } from "../../store/store.ts";
import type { Roots } from "./roots.ts";
import { tallyOf, type DeadObject, type Survey, type Tally } from "./survey.ts";
import type { ThinReport } from "./thin.ts";
import type { Litter } from "./tidy.ts";

export interface PruneReport {
  readonly dryRun: boolean;
  readonly generations: number;
  /** Forgotten, and can be brought back. */
  readonly forgotten: number;
  readonly layersRead: number;
  readonly live: Tally;
  /** Condemned by this run. */
  readonly condemned: Tally;
  /** Condemned before, and deleted by this run. */
  readonly deleted: Tally;
  /** Condemned not long enough ago. */
  readonly waiting: Tally;
  /** Condemned, and in use all the same. */
  readonly kept: Tally;
  /** Dead, but too young to be condemned. */
  readonly young: Tally;
  /** Small objects removed, by kind. */
  readonly tidied: Readonly<Record<"forgotten" | "forwards" | keyof Litter, number>>;
  /** Thin packs. */
  readonly rewritten: ThinReport;
  readonly indexesReplaced: number;
  /** Of objects in use (Object Lock). */
  readonly locksExtended: number;
  readonly requests: RequestCounts;
  /** In a dry run: what a run would send that is none, about. */
  readonly expectedRequests?: RequestCounts;
  readonly seconds: number;
}

/** What a run found and did. */
export interface Facts extends Pick<
  PruneReport,
  | "dryRun"
  | "layersRead"
  | "rewritten"
  | "indexesReplaced"
  | "locksExtended"
  | "requests"
  | "expectedRequests"
  | "seconds"
> {
  readonly roots: Roots;
  readonly found: Survey;
  readonly litter: Litter;
  readonly condemned: readonly DeadObject[];
  readonly deleted: readonly DeadObject[];
}

export function reportOf({ roots, found, litter, condemned, deleted, ...rest }: Facts): PruneReport {
  const gone = new Set(deleted.map(({ key }) => key));
  const spared = tallyOf(found.expired.filter(({ key }) => !gone.has(key)));
  return {
    ...rest,
    generations: roots.generations,
    forgotten: roots.forgotten,
    live: plain(found.live),
    condemned: plain(tallyOf(condemned)),
    deleted: plain(tallyOf(deleted)),
    waiting: plain(found.waiting),
    kept: sum(found.kept, spared),
    young: plain(found.young),
    tidied: {
      forgotten: roots.expired.length,
      runs: litter.runs.length,
      leases: litter.leases.length,
      damaged: litter.damaged.length,
      condemned: litter.condemned.length,
      profiles: litter.profiles.length,
      forwards: deleted.filter(({ type }) => type === "forward").length,
    },
  };
}

function plain({ packs, layers, bytes }: Tally): Tally {
  return { packs, layers, bytes };
}

function sum(a: Tally, b: Tally): Tally {
  return { packs: a.packs + b.packs, layers: a.layers + b.layers, bytes: a.bytes + b.bytes };
}
