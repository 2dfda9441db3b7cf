import { Budget } from "../flow/budget.ts";
import type { Profile } from "../repository/profiles.ts";

/** A disk of which chunks can be fetched before anybody reads them. */
export interface FetchingDisk {
  /** Of the disk. */
  readonly chunks: number;
  /** Resolves when they are in memory, or when that failed. */
  fetchAhead(chunks: readonly number[]): Promise<void>;
}

/** Chunks that are asked for together: those that are neighbours in a pack come with one request. */
const BATCH_CHUNKS = 32;
/** Batches under way. */
const BATCHES = 2;

/**
 * Fetches what an earlier serve's clients have read, in their order, a bounded way ahead of where this one's are: what
 * nobody turns out to want costs no more than that, and a client that reads something else, or nothing, ends it there.
 */
export class Prefetch {
  readonly #disks: ReadonlyMap<string, FetchingDisk>;
  readonly #window: number;
  readonly #order: { readonly disk: string; readonly chunk: number }[] = [];
  /** What no client has read yet. */
  readonly #unread = new Map<string, Set<number>>();
  #read = 0;
  #wake = (): void => undefined;

  /** @param window most chunks that are fetched and not read. */
  constructor(profile: Profile, disks: ReadonlyMap<string, FetchingDisk>, window: number) {
    this.#disks = disks;
    this.#window = window;
    for (const [number, first, count] of profile.reads) {
      const disk = profile.disks[number]!;
      const end = Math.min(first + count, disks.get(disk)?.chunks ?? 0);
      for (let chunk = first; chunk < end; chunk++) this.#add(disk, chunk);
    }
  }

  /** Takes note of a read. */
  note(disk: string, chunk: number): void {
    if (this.#unread.get(disk)?.delete(chunk) !== true) return;
    this.#read++;
    this.#wake();
  }

  /** Resolves when all is fetched or the signal is aborted, and nothing is under way. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const slots = new Budget(BATCHES);
    const underWay = new Set<Promise<void>>();
    const onAbort = (): void => this.#wake();
    signal.addEventListener("abort", onAbort, { once: true });
    for (let next = 0; next < this.#order.length && !signal.aborted;) {
      const end = Math.min(next + BATCH_CHUNKS, this.#read + this.#window, this.#order.length);
      if (next >= end) {
        await new Promise<void>((resolve) => (this.#wake = resolve));
        continue;
      }
      const giveSlot = await slots.take(1, new AbortController().signal);
      const batch = this.#fetch(next, end).finally(() => {
        giveSlot();
        underWay.delete(batch);
      });
      underWay.add(batch);
      next = end;
    }
    signal.removeEventListener("abort", onAbort);
    await Promise.all(underWay);
  }

  async #fetch(from: number, to: number): Promise<void> {
    const unread = this.#order
      .slice(from, to)
      .filter(({ disk, chunk }) => this.#unread.get(disk)!.has(chunk));
    const byDisk = Map.groupBy(unread, ({ disk }) => disk);
    const fetching = [...byDisk].map(([disk, wanted]) =>
      this.#disks.get(disk)!.fetchAhead(wanted.map(({ chunk }) => chunk)),
    );
    await Promise.all(fetching);
  }

  #add(disk: string, chunk: number): void {
    let unread = this.#unread.get(disk);
    if (unread === undefined) this.#unread.set(disk, (unread = new Set<number>()));
    if (unread.has(chunk)) return;
    unread.add(chunk);
    this.#order.push({ disk, chunk });
  }
}
