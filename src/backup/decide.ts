import type { Identity } from "../chunk/workers.ts";
import type { DedupIndex, Hit } from "../repository/dedup.ts";
import type { PackDirectory, PackRef } from "../repository/pack-directory.ts";
import type { PackDirectories } from "../repository/pack-reader.ts";
import type { Fetched, FetchedData } from "../chunk/fetch.ts";
import type { ForcedChunks } from "./forced.ts";
import type { ParentChunk, ParentChunks } from "./parent-chunks.ts";

/**
 * What becomes of one chunk of the disk.
 *
 * - `unchanged`  the parent's map says the same already: nothing is recorded
 * - `zero`       recorded as zero
 * - `known`      its bytes lie in a complete pack, whose directory confirms it
 * - `twin`       an earlier chunk of this run has the same id; its address is known by the time this one is stored
 * - `new`        to be sealed and stored
 */
export type Verdict =
  | { readonly is: "unchanged" }
  | { readonly is: "zero" }
  | { readonly is: "known"; readonly pack: string; readonly slot: number }
  | { readonly is: "twin"; readonly of: NewChunk }
  | NewChunk;

export interface NewChunk {
  readonly is: "new";
  readonly id: Uint8Array;
  /** Set when it is placed: before its twins are, which come later in the order of the disks. */
  address?: { readonly pack: string; readonly slot: number };
}

/** A fetched batch with a verdict for each chunk; a batch of zeros carries one verdict a range. */
export type Decided =
  | { readonly fetched: FetchedData; readonly verdicts: readonly Verdict[] }
  | { readonly fetched: Exclude<Fetched, FetchedData>; readonly zeros: readonly ZeroRun[] };

export interface ZeroRun {
  readonly first: number;
  readonly count: number;
  /** True when the parent says zero too. */
  readonly unchanged: boolean;
}

/** What this run has found and stored so far, over all of its disks. */
export interface RunChunks {
  /** By id (latin1): decided to be new and not yet in the dedup index; never more than the pipeline holds. */
  readonly inFlight: Map<string, NewChunk>;
  /**
   * Packs of this run that are not complete: their slots are known from memory and need no confirmation. Those that
   * are complete are confirmed like any other, for what is known of them comes out of the database.
   */
  readonly open: Set<string>;
  /** Packs of others that must not be used: condemned by a prune. */
  readonly avoid: ReadonlySet<string>;
  /** Of every complete pack that a layer of this run names. */
  readonly refs: Map<string, PackRef>;
  /** Those of them that other runs wrote. */
  readonly reused: Set<string>;
}

/** How layers name a pack. */
export function refOf({ pack, digest, slotCount, blobBytes }: PackDirectory): PackRef {
  return { pack, digest, slotCount, blobBytes };
}

/** A chunk id as a key of `RunChunks.inFlight`. */
export function idKey(id: Uint8Array): string {
  return Buffer.from(id.buffer, id.byteOffset, id.length).toString("latin1");
}

/** Decides chunk by chunk, in the order of the disk: one instance for each disk of a run. */
export class Decider {
  readonly #dedup: DedupIndex;
  readonly #directories: PackDirectories;
  readonly #parent: ParentChunks | undefined;
  readonly #forced: ForcedChunks;
  readonly #mine: RunChunks;

  /**
   * @param parent the parent's chunks to compare with; undefined: every chunk is recorded.
   * @param forced recorded whatever the parent says.
   */
  constructor(
    dedup: DedupIndex,
    directories: PackDirectories,
    parent: ParentChunks | undefined,
    forced: ForcedChunks,
    mine: RunChunks,
  ) {
    this.#dedup = dedup;
    this.#directories = directories;
    this.#parent = parent;
    this.#forced = forced;
    this.#mine = mine;
  }

  async decide(fetched: Fetched, signal: AbortSignal): Promise<Decided> {
    if (fetched.slab === undefined) return { fetched, zeros: await this.#zeros(fetched, signal) };
    try {
      const { first, count } = fetched.batch;
      const before = await this.#parent?.chunks(first, count, signal);
      const guesses = fetched.identities.map((identity, index) => {
        return this.#guess(identity, before?.[index]);
      });
      return { fetched, verdicts: await this.#confirm(guesses, signal) };
    } catch (error) {
      fetched.slab.release();
      throw error;
    }
  }

  #guess(identity: Identity, parent: ParentChunk | undefined): Verdict | Hit {
    if (identity.zero) return parent === "zero" ? { is: "unchanged" } : { is: "zero" };
    const { id } = identity;
    if (parent !== undefined && parent !== "zero" && parent.equals(id)) return { is: "unchanged" };
    const hit = this.#dedup.lookup(id);
    if (hit === undefined || this.#mine.avoid.has(hit.pack)) return this.#fresh(id);
    return this.#mine.open.has(hit.pack) ? { is: "known", ...hit } : { ...hit, id };
  }

  #fresh(id: Uint8Array): Verdict {
    const key = idKey(id);
    const first = this.#mine.inFlight.get(key);
    if (first !== undefined) return { is: "twin", of: first };
    const fresh: NewChunk = { is: "new", id };
    this.#mine.inFlight.set(key, fresh);
    return fresh;
  }

  /**
   * R8: the index is only advice, and a wrong address would restore a wrong chunk that verifies. So the packs' own
   * directories must hold each hit; what they do not hold is stored again.
   */
  async #confirm(guesses: readonly (Verdict | Hit)[], signal: AbortSignal): Promise<Verdict[]> {
    const hits = guesses.filter((guess): guess is Hit => !("is" in guess));
    const failed = new Set(await this.#dedup.confirm(hits, this.#directories, signal));
    const verdicts: Verdict[] = [];
    for (const guess of guesses) {
      if ("is" in guess) verdicts.push(guess);
      else if (failed.has(guess)) verdicts.push(this.#fresh(guess.id));
      else {
        const { pack, slot } = guess;
        if (!this.#mine.refs.has(pack)) {
          this.#mine.refs.set(pack, refOf(await this.#directories.load(pack, signal)));
          this.#mine.reused.add(pack);
        }
        verdicts.push({ is: "known", pack, slot });
      }
    }
    return verdicts;
  }

  async #zeros(fetched: Fetched, signal: AbortSignal): Promise<ZeroRun[]> {
    const { first, count } = fetched.batch;
    if (this.#parent === undefined) return [{ first, count, unchanged: false }];
    const runs: ZeroRun[] = [];
    for await (const run of this.#parent.zeroRuns(first, count, signal)) {
      const end = run.first + run.count;
      for (let at = run.first; at < end;) {
        const next = Math.min(this.#forced.nextChange(at), end);
        runs.push({ first: at, count: next - at, unchanged: run.zero && !this.#forced.has(at) });
        at = next;
      }
    }
    return runs;
  }
}
