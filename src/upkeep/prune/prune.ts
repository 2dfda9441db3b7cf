import { AppError, hasCode } from "../../errors.ts";
import { condemn, loadCondemned, type CondemnedRecord } from "../../repository/condemned.ts";
import type { Repository } from "../../repository/config.ts";
import type { ForgottenName } from "../../repository/forgotten.ts";
import { acquireLease, DEFAULT_LEASE, type Lease, type LeaseHolder } from "../../repository/leases.ts";
import { forgottenKey, uuidv7 } from "../../repository/names.ts";
import type { PinLookup } from "../../repository/pins.ts";
import { requestsSince } from "../../store/request-counts.ts";
import type { RequestCounts } from "../../store/store.ts";
import { expectedRequests } from "./expected-requests.ts";
import { Forwarding } from "./forwarding.ts";
import { extendLiveLocks, withoutLocked } from "./locks.ts";
import { Live, markLive } from "./mark.ts";
import { reallyMoved } from "./moved.ts";
import { listAdopted } from "./reindex.ts";
import { takeOutOfIndex } from "./rewrite-index.ts";
import { reportOf, type Facts, type PruneReport } from "./prune-report.ts";
import type { RewriteLimits } from "./rewrite-limits.ts";
import { readRoots, type Roots } from "./roots.ts";
import { condemnedSince, isNeeded, survey, type DeadObject, type SurveyOptions } from "./survey.ts";
import { BATCH_MAX, sweep } from "./sweep.ts";
import { NOT_REWRITTEN, planned, ThinPacks } from "./thin.ts";
import { damagedPacks, findLitter } from "./tidy.ts";

/** In place of a source, in the lease of a prune; begins like no name that anybody would choose. */
const LEASE_NAME = "-prune";

export interface PruneOptions {
  /**
   * Milliseconds for which nothing young, nothing forgotten and nothing condemned is touched. Whoever lets people choose
   * keeps it above the hour in which a `forget` may put a manifest back (R24).
   */
  readonly graceMs: number;
  /** Say only what would be done; write and delete nothing. */
  readonly dryRun: boolean;
  readonly lookup: PinLookup;
  readonly holder: LeaseHolder;
  readonly warn: (message: string) => void;
  /** Which thin packs are rewritten; none: none are. */
  readonly rewrite?: RewriteLimits | undefined;
}

/**
 * Removes what nobody needs, in two steps (FORMAT.md, "Collection"): what is dead and older than the grace is condemned;
 * what was condemned longer than the grace ago, and is still dead, is deleted. Every step may be cut off and is
 * made up for by the next run; two runs at once only do the work twice, and a lease keeps them apart.
 *
 * @throws AppError E_PRUNING (locked): another one runs; E_PRUNE_UNREADABLE, E_PACK_CONFLICT (corrupt): it cannot be
 *   told what is in use, and nothing was condemned or deleted; errors of the store.
 */
export async function prune(
  repository: Repository,
  options: PruneOptions,
  run: AbortController,
): Promise<PruneReport> {
  if (options.dryRun) return await new Prune(repository, options, run).work(undefined);
  const lease = await acquirePruneLease(repository, options, run.signal);
  try {
    return await new Prune(repository, options, run).work(lease);
  } finally {
    await lease.release();
  }
}

async function acquirePruneLease(
  repository: Repository,
  { holder, lookup }: PruneOptions,
  signal: AbortSignal,
): Promise<Lease> {
  const id = uuidv7((await repository.store.now(signal)).getTime());
  const settings = { ...DEFAULT_LEASE, holder, isGone: lookup.isGone };
  try {
    return await acquireLease(repository, LEASE_NAME, id, settings, signal);
  } catch (error) {
    if (!hasCode(error, "E_LOCKED")) throw error;
    const { host, pid, expires } = error.context;
    const message = `The repository is being pruned by process ${String(pid)} on ${String(host)}; wait for it, or until ${String(expires)} if it died`;
    throw new AppError("locked", "E_PRUNING", message, error.context, error);
  }
}

/** One run, and what it knows so far. */
class Prune {
  readonly #repository: Repository;
  readonly #options: PruneOptions;
  readonly #run: AbortController;
  readonly #live = new Live();
  readonly #forwarding: Forwarding;
  readonly #startedMs = performance.now();
  readonly #requestsBefore: RequestCounts;
  #layersRead = 0;
  /** R7: min(now, start of the oldest live run) − grace, milliseconds since 1970; never rises. */
  #limitMs = Infinity;

  constructor(repository: Repository, options: PruneOptions, run: AbortController) {
    this.#repository = repository;
    this.#options = options;
    this.#run = run;
    this.#forwarding = new Forwarding(repository, this.#live.packs, options.warn);
    this.#requestsBefore = repository.store.requests();
  }

  /** @param lease that of this run; none: nothing is written. */
  async work(lease: Lease | undefined): Promise<PruneReport> {
    const repository = this.#repository;
    const { signal } = this.#run;
    const { rewrite } = this.#options;
    const now = await repository.store.now(signal);
    const beforeMark = this.#sent();
    const roots = await this.#mark(now);
    const mark = requestsSince(beforeMark, this.#sent());
    const records: CondemnedRecord[] = [];
    for await (const record of loadCondemned(repository, signal)) records.push(record);
    const condemned = condemnedSince(records);
    const wanted = await damagedPacks(repository, signal);
    const limit = new Date(this.#limitMs);
    const thin = await ThinPacks.begin(repository, this.#live.packs, this.#forwarding, signal);
    const onNeededPack: SurveyOptions["onNeededPack"] = (pack, state) => thin.consider(pack, state);
    const options = { limit, condemned, wanted, onNeededPack };
    const found = await survey(repository, this.#live, this.#forwarding, options, signal);
    const facts = { now, limit, live: this.#live, roots, records, found };
    const litter = await findLitter(repository, facts, signal);
    if (lease === undefined) {
      const moves = rewrite === undefined ? undefined : thin.plan(rewrite);
      const { fresh, expired, live } = found;
      const { generations, sources } = roots;
      const work = { mark, fresh, expired, litter, moves, sources, forgotten: roots.expired.length };
      const expected = await expectedRequests(
        repository,
        { ...work, sent: this.#sent(), live: live.packs + live.layers + generations },
        signal,
      );
      return this.#report({
        roots,
        found,
        litter,
        rewritten: moves === undefined ? NOT_REWRITTEN : planned(moves),
        condemned: fresh,
        deleted: expired,
        indexesReplaced: 0,
        locksExtended: 0,
        expectedRequests: expected,
      });
    }

    const locksExtended = await extendLiveLocks(
      repository,
      this.#live,
      this.#forwarding,
      new Set(condemned.keys()),
      signal,
    );
    // Before the generations are listed again: whoever brings one back looks its record up after the manifest is there.
    await this.#deleteAll(roots.expired.map(keyOfForgotten));
    const forwards = deadForwards(this.#forwarding, condemned, limit);
    const dead = await this.#goneOrMoved(found.fresh);
    await this.#listAdopted(dead);
    const fresh = [...dead, ...forwards.fresh];
    let indexesReplaced = await this.#condemn(fresh, condemned);
    await lease.check(signal);
    const deleted = await sweep(
      repository,
      [...found.expired, ...forwards.expired],
      (objects) => this.#stillDead(objects, condemned),
      signal,
    );
    await this.#deleteAll(Object.values(litter).flat());
    if (rewrite === undefined) {
      const rewritten = NOT_REWRITTEN;
      const done = { condemned: fresh, deleted, indexesReplaced, locksExtended };
      return this.#report({ roots, found, litter, rewritten, ...done });
    }
    // Last, since it takes longest, and all else stands without it.
    const { report: rewritten, emptied } = await thin.rewrite(rewrite, this.#options.warn, this.#run);
    const known = new Set(fresh.map(({ id }) => id));
    const straightened = deadForwards(this.#forwarding, condemned, limit).fresh.filter(
      ({ id }) => !known.has(id),
    );
    const moved = [...emptied, ...straightened];
    await lease.check(signal);
    indexesReplaced += await this.#condemn(moved, condemned);
    const done = { condemned: [...fresh, ...moved], deleted, indexesReplaced, locksExtended };
    return this.#report({ roots, found, litter, rewritten, ...done });
  }

  /** What a prune has copied that died before it listed the new packs. */
  async #listAdopted(dead: readonly DeadObject[]): Promise<void> {
    const adopted = dead
      .filter(({ type, id }) => type === "pack" && this.#live.packs.has(id))
      .map(({ id }) => ({ pack: id, targets: this.#forwarding.targetsOf(id) }));
    await listAdopted(this.#repository, adopted, this.#run.signal);
  }

  /** By a fresh mark: what generations that came meanwhile need stays. */
  async #stillDead(
    objects: readonly DeadObject[],
    condemned: ReadonlyMap<string, number>,
  ): Promise<readonly DeadObject[]> {
    await this.#mark(await this.#repository.store.now(this.#run.signal));
    const forwards = deadForwards(this.#forwarding, condemned, new Date(this.#limitMs)).expired;
    const ids = new Set(forwards.map(({ id }) => id));
    const dead = objects.filter((one) =>
      one.type === "forward" ? ids.has(one.id) : !isNeeded(this.#live, this.#forwarding, one),
    );
    const expired = dead.filter(({ id }) => condemned.get(id)! <= this.#limitMs);
    return await this.#goneOrMoved(await withoutLocked(this.#repository, expired, this.#run.signal));
  }

  /** R2: without the packs that are in use, unless all that is used of them really lies somewhere else. */
  async #goneOrMoved(dead: readonly DeadObject[]): Promise<DeadObject[]> {
    const packs = dead.filter(({ type }) => type === "pack").map(({ id }) => id);
    const { warn } = this.#options;
    const moved = await reallyMoved(this.#repository, this.#live.packs, packs, warn, this.#run.signal);
    return dead.filter(({ type, id }) => type !== "pack" || moved.has(id));
  }

  /** Reads what counts now, and adds it to what is live, with what forwards lead to from there (R3). */
  async #mark(now: Date): Promise<Roots> {
    const { graceMs, lookup, warn } = this.#options;
    const forgottenSince = new Date(now.getTime() - graceMs);
    const roots = await readRoots(this.#repository, { forgottenSince, lookup, warn }, this.#run);
    const starts = roots.liveRuns.map(({ startedAt }) => Date.parse(startedAt));
    this.#limitMs = Math.min(this.#limitMs, Math.min(now.getTime(), ...starts) - graceMs);
    this.#layersRead += await markLive(this.#repository, this.#live, roots, warn, this.#run);
    await this.#forwarding.refresh(this.#run.signal);
    return roots;
  }

  /** R5, R1: out of the index first; and the record is durable before generations are listed again. */
  async #condemn(fresh: readonly DeadObject[], before: ReadonlyMap<string, number>): Promise<number> {
    if (fresh.length === 0) return 0;
    const { signal } = this.#run;
    const packs = fresh.filter(({ type }) => type === "pack").map(({ id }) => id);
    const layers = fresh.filter(({ type }) => type === "layer").map(({ id }) => id);
    const forwards = fresh.filter(({ type }) => type === "forward").map(({ id }) => id);
    const listedNoMore = new Set([...packs, ...before.keys()]);
    const replaced =
      packs.length === 0
        ? 0
        : await takeOutOfIndex(this.#repository, listedNoMore, this.#options.warn, signal);
    await condemn(
      this.#repository,
      { packs, layers, forwards },
      await this.#repository.store.now(signal),
      signal,
    );
    return replaced;
  }

  async #deleteAll(keys: readonly string[]): Promise<void> {
    for (let from = 0; from < keys.length; from += BATCH_MAX) {
      await this.#repository.store.delete(keys.slice(from, from + BATCH_MAX), this.#run.signal);
    }
  }

  #report(facts: Omit<Facts, "dryRun" | "layersRead" | "requests" | "seconds">): PruneReport {
    const { dryRun } = this.#options;
    const seconds = (performance.now() - this.#startedMs) / 1000;
    return reportOf({ ...facts, dryRun, layersRead: this.#layersRead, requests: this.#sent(), seconds });
  }

  #sent(): RequestCounts {
    return requestsSince(this.#requestsBefore, this.#repository.store.requests());
  }
}

/** Forwards that nobody needs: those to be condemned, and those that were, long enough ago. */
function deadForwards(
  forwarding: Forwarding,
  condemned: ReadonlyMap<string, number>,
  limit: Date,
): { readonly fresh: readonly DeadObject[]; readonly expired: readonly DeadObject[] } {
  const fresh: DeadObject[] = [];
  const expired: DeadObject[] = [];
  for (const { id, key, size, lastModified } of forwarding.unneeded(new Set(condemned.keys()))) {
    const since = condemned.get(id);
    if (since === undefined && lastModified <= limit) fresh.push({ type: "forward", id, key, size });
    if (since !== undefined && since <= limit.getTime()) expired.push({ type: "forward", id, key, size });
  }
  return { fresh, expired };
}

function keyOfForgotten({ source, generation }: ForgottenName): string {
  return forgottenKey(source, generation);
}
