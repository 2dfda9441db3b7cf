import { AppError } from "../../errors.ts";
import { readLedger, replaceLedger, type Ledger, type StoredLedger } from "../../repository/checked.ts";
import type { Repository } from "../../repository/config.ts";
import type { UsedPack } from "./used-packs.ts";

/** What writing the ledger of a run that was stopped may still take, milliseconds. */
const CLEANUP_MS = 15_000;

/**
 * Whose turn it is: with N percent, every pack is read within ceil(100 / N) runs, whatever comes and goes between.
 *
 * Those read longest ago come first, N percent of all there are. A pack that came since the last run goes to the end
 * of the queue: it was written just now. So the queue moves on however much is new. Packs that are removed make the
 * steps shorter; what is due all the same is then read on top.
 *
 * @param percent above 0, at most 100.
 * @param random settles the order of those read by the same run: 0 to below 1.
 * @param continued what stopped runs have read since the last one that was done is part of these packs.
 */
export function choosePacks(
  ledger: Ledger,
  packs: readonly string[],
  percent: number,
  random: () => number = Math.random,
  continued = false,
): Set<string> {
  const within = Math.ceil(100 / percent);
  const now = ledger.runs + 1;
  const queue = packs
    .map((pack) => ({ pack, last: lastRun(ledger, pack), tie: random() }))
    .sort((a, b) => a.last - b.last || a.tie - b.tie);
  const left = continued ? queue.filter(({ last }) => last < now) : queue;
  const share = Math.ceil((packs.length * percent) / 100) - (queue.length - left.length);
  return new Set(
    left.filter(({ last }, index) => index < share || now - last >= within).map(({ pack }) => pack),
  );
}

/**
 * The ledger after a run.
 *
 * @param used every pack in use; others are dropped. Undefined: not all are known, and all that the ledger names stay.
 * @param done false for a run that was stopped: what it read is not read again soon, but it does not count as a run.
 * @param continued what stopped runs read before this one was read by this run.
 */
export function ledgerAfter(
  ledger: Ledger,
  used: readonly string[] | undefined,
  read: ReadonlySet<string>,
  done: boolean,
  continued = false,
): Ledger {
  const now = ledger.runs + 1;
  const packs = new Set([...(used ?? ledger.last.keys()), ...read]);
  const last = new Map<string, number>();
  for (const pack of packs) {
    const before = lastRun(ledger, pack);
    // what a stopped run read ahead of this one counts as read by the run before
    last.set(pack, read.has(pack) ? now : done && !continued ? Math.min(before, ledger.runs) : before);
  }
  return { runs: done ? now : ledger.runs, last };
}

function lastRun(ledger: Ledger, pack: string): number {
  return ledger.last.get(pack) ?? ledger.runs;
}

/** The ledger in use by one run. */
export class Turns {
  readonly #repository: Repository;
  readonly #warn: (message: string) => void;
  readonly #ledger: StoredLedger;
  readonly #complete: boolean;
  readonly #continued: boolean;
  readonly #record: boolean;
  readonly #read = new Set<string>();

  private constructor(repository: Repository, options: TurnOptions, ledger: StoredLedger) {
    const { warn, complete, record, continued } = options;
    this.#repository = repository;
    this.#warn = warn;
    this.#complete = complete;
    this.#continued = continued ?? false;
    this.#record = record;
    this.#ledger = ledger;
  }

  static async begin(repository: Repository, options: TurnOptions, signal: AbortSignal): Promise<Turns> {
    const ledger = await readLedger(repository, signal, ({ message }) =>
      options.warn(`${message}; the packs that it names are read as if they were new`),
    );
    return new Turns(repository, options, ledger);
  }

  choose(packs: readonly UsedPack[], percent: number): UsedPack[] {
    const ids = packs.map(({ packRef }) => packRef.pack);
    const chosen = choosePacks(this.#ledger, ids, percent, Math.random, this.#continued);
    return packs.filter(({ packRef }) => chosen.has(packRef.pack));
  }

  read({ packRef }: UsedPack): void {
    this.#read.add(packRef.pack);
  }

  /**
   * Stores the ledger. Without the right to write it warns, and the next run chooses as this one did.
   * @param done as for `ledgerAfter`.
   */
  async end(packs: readonly UsedPack[], done: boolean): Promise<void> {
    if (!this.#record) return;
    const used = this.#complete ? packs.map(({ packRef }) => packRef.pack) : undefined;
    const after = ledgerAfter(this.#ledger, used, this.#read, done, this.#continued);
    try {
      await replaceLedger(this.#repository, after, this.#ledger.keys, AbortSignal.timeout(CLEANUP_MS));
    } catch (error) {
      if (!(error instanceof AppError) || (error.kind !== "credentials" && error.kind !== "full"))
        throw error;
      this.#warn(
        `What was read could not be noted, so the next run may read the same again: ${error.message}`,
      );
    }
  }
}

interface TurnOptions {
  readonly continued?: boolean;
  readonly complete: boolean;
  /** False: the ledger is read only. */
  readonly record: boolean;
  readonly warn: (message: string) => void;
}
