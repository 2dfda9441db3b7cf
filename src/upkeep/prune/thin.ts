import type { Repository } from "../../repository/config.ts";
import { readDamaged, type DamagedSlots } from "../../repository/damaged.ts";
import { packKey } from "../../repository/names.ts";
import { packLength } from "../../repository/pack.ts";
import { Candidates, type Choice } from "./candidates.ts";
import { flattenForwards } from "./flatten.ts";
import type { Forwarding } from "./forwarding.ts";
import { moveOrder } from "./move-order.ts";
import { reallyMoved } from "./moved.ts";
import type { PackMarks } from "./pack-marks.ts";
import type { RewriteLimits } from "./rewrite-limits.ts";
import { rewritePacks, type RewriteReport } from "./rewrite.ts";
import { hasBit } from "./slot-bits.ts";
import type { DeadObject } from "./survey.ts";

/** What became of thin packs; in a dry run, as far as the marks tell. */
export type ThinReport = RewriteReport & {
  /** Stored bytes of dead blobs in packs that are rewritten: freed once these are deleted. */
  freedBytes: number;
};

export const NOT_REWRITTEN: ThinReport = {
  packs: 0,
  bytes: 0,
  newPacks: 0,
  forwards: 0,
  damaged: 0,
  freedBytes: 0,
};

/** What a dry run says of a choice. */
export function planned({ packs, copiedBytes, freedBytes }: Choice): ThinReport {
  return { ...NOT_REWRITTEN, packs: packs.length, bytes: copiedBytes, freedBytes };
}

/** The rewriting of thin packs within one prune: it is told of every pack that is needed, chooses, and moves. */
export class ThinPacks {
  readonly #repository: Repository;
  readonly #marks: PackMarks;
  readonly #forwarding: Forwarding;
  readonly #damaged: DamagedSlots;
  readonly #candidates: Candidates;

  private constructor(
    repository: Repository,
    marks: PackMarks,
    forwarding: Forwarding,
    damaged: DamagedSlots,
  ) {
    this.#repository = repository;
    this.#marks = marks;
    this.#forwarding = forwarding;
    this.#damaged = damaged;
    this.#candidates = new Candidates(marks, forwarding, repository.config.packSize);
  }

  /** Reads what is damaged: a pack of which a live slot is stays as it is, for whoever may want to look at it. */
  static async begin(
    repository: Repository,
    marks: PackMarks,
    forwarding: Forwarding,
    signal: AbortSignal,
  ): Promise<ThinPacks> {
    return new ThinPacks(repository, marks, forwarding, await readDamaged(repository, signal));
  }

  /** Takes a pack into account that is there and needed; what is young may yet come to be used by a run. */
  consider(
    pack: string,
    { young, condemned }: { readonly young: boolean; readonly condemned: boolean },
  ): void {
    const begun = !condemned || this.#forwarding.has(pack);
    this.#candidates.consider(pack, !young && begun && !this.#isDamaged(pack));
  }

  /** What `rewrite` would move. */
  plan(limits: RewriteLimits): Choice {
    return this.#candidates.choose(limits);
  }

  /**
   * Moves what is worth it, and makes forwards straight where they lead to packs that were rewritten.
   *
   * @returns the packs that can be condemned now: all that is live of them is elsewhere.
   */
  async rewrite(
    limits: RewriteLimits,
    warn: (message: string) => void,
    run: AbortController,
  ): Promise<{ readonly report: ThinReport; readonly emptied: readonly DeadObject[] }> {
    const { signal } = run;
    const choice = this.#candidates.choose(limits);
    const report = { ...NOT_REWRITTEN, freedBytes: choice.freedBytes };
    if (choice.packs.length > 0) {
      const groups = await moveOrder(this.#repository, choice.packs, signal);
      Object.assign(report, await rewritePacks(this.#repository, groups, warn, run));
      await this.#forwarding.refresh(signal);
    }
    const straight = await flattenForwards(this.#repository, this.#marks, this.#forwarding, signal);
    report.forwards += straight;
    if (straight > 0) await this.#forwarding.refresh(signal);
    return { report, emptied: await this.#emptied(choice, warn, signal) };
  }

  async #emptied(
    { packs }: Choice,
    warn: (message: string) => void,
    signal: AbortSignal,
  ): Promise<DeadObject[]> {
    const covered = packs.filter(({ packRef }) => this.#forwarding.covers(packRef.pack));
    const names = covered.map(({ packRef }) => packRef.pack);
    const moved = await reallyMoved(this.#repository, this.#marks, names, warn, signal);
    return covered
      .filter(({ packRef }) => moved.has(packRef.pack))
      .map(({ packRef: { pack, slotCount, blobBytes } }) => {
        const size = packLength(slotCount, blobBytes, this.#repository.sealer.encrypted);
        return { type: "pack", id: pack, key: packKey(pack), size };
      });
  }

  /** Whether a slot that would have to be copied is known to be damaged. */
  #isDamaged(pack: string): boolean {
    const slots = this.#damaged.get(pack);
    if (slots === undefined) return false;
    const missing = new Set(this.#forwarding.has(pack) ? this.#forwarding.missing(pack) : []);
    const { bits } = this.#marks.get(pack)!;
    return [...slots].some((slot) => (this.#forwarding.has(pack) ? missing.has(slot) : hasBit(bits, slot)));
  }
}
