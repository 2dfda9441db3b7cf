import type { PackRef } from "../../repository/pack-directory.ts";
import type { Forwarding } from "./forwarding.ts";
import type { PackMarks } from "./pack-marks.ts";
import type { RewriteLimits } from "./rewrite-limits.ts";
import { slotsWithout } from "./slot-bits.ts";

/** A pack of which slots are to be copied elsewhere. */
export interface PackToMove {
  readonly packRef: PackRef;
  /** Ascending. */
  readonly slots: readonly number[];
}

/** What a choice costs and brings, in stored bytes, as if all slots of a pack were equally long. */
export interface Choice {
  readonly packs: readonly PackToMove[];
  readonly copiedBytes: number;
  readonly freedBytes: number;
}

interface Candidate {
  readonly pack: string;
  readonly blobBytes: number;
  readonly liveBytes: number;
}

/** A pack below this part of the size that packs aim at is small. */
const SMALL_PART = 1 / 4;

/** Bytes of a forward and of the new directory for each slot: with less to gain a pack is left alone. */
const COST_PER_SLOT = 2 * 45;

/**
 * Chooses packs to rewrite, by the marks alone: first those that an earlier run has begun with; then the thinnest, until
 * no more is dead than may be; then small ones, once together they fill a pack, so that no byte is joined again and again.
 */
export class Candidates {
  readonly #marks: PackMarks;
  readonly #forwarding: Forwarding;
  readonly #smallBytes: number;
  readonly #packSize: number;
  readonly #begun: Candidate[] = [];
  readonly #thin: Candidate[] = [];
  readonly #small: Candidate[] = [];
  #totalBytes = 0;
  #unusedBytes = 0;

  /** @param packSize of the repository, bytes. */
  constructor(marks: PackMarks, forwarding: Forwarding, packSize: number) {
    this.#marks = marks;
    this.#forwarding = forwarding;
    this.#packSize = packSize;
    this.#smallBytes = packSize * SMALL_PART;
  }

  /**
   * Takes a pack into account that is there and in use.
   *
   * @param movable false for one that is to stay as it is: young, or known to be damaged.
   */
  consider(pack: string, movable: boolean): void {
    const { packRef, liveSlots, liveBytes } = this.#marks.get(pack)!;
    const { blobBytes, slotCount } = packRef;
    const candidate = { pack, blobBytes, liveBytes };
    this.#totalBytes += blobBytes;
    this.#unusedBytes += blobBytes - liveBytes;
    if (!movable) return;
    if (this.#forwarding.has(pack)) this.#begun.push(candidate);
    else if (liveSlots < slotCount && blobBytes - liveBytes > slotCount * COST_PER_SLOT)
      this.#thin.push(candidate);
    else if (blobBytes < this.#smallBytes) this.#small.push(candidate);
  }

  choose(limits: RewriteLimits): Choice {
    const chosen: Candidate[] = [];
    let [left, total, unused] = [limits.maxRepackBytes, this.#totalBytes, this.#unusedBytes];
    const take = (candidate: Candidate): boolean => {
      if (candidate.liveBytes > left) return false;
      left -= candidate.liveBytes;
      unused -= candidate.blobBytes - candidate.liveBytes;
      total -= candidate.blobBytes - candidate.liveBytes;
      chosen.push(candidate);
      return true;
    };
    const { maxUnused } = limits;
    const allowed = (): number =>
      typeof maxUnused === "number" ? maxUnused : (total * maxUnused.percent) / 100;
    for (const candidate of this.#begun) take(candidate);
    const small = [...this.#small];
    for (const candidate of this.#thin.toSorted((a, b) => deadShare(b) - deadShare(a))) {
      if ((unused <= allowed() || !take(candidate)) && candidate.blobBytes < this.#smallBytes)
        small.push(candidate);
    }
    const smallBytes = small.reduce((sum, { liveBytes }) => sum + liveBytes, 0);
    if (smallBytes >= this.#packSize) for (const candidate of small) take(candidate);
    return {
      packs: chosen.map(({ pack }) => this.#toMove(pack)),
      copiedBytes: chosen.reduce((sum, { liveBytes }) => sum + liveBytes, 0),
      freedBytes: chosen.reduce((sum, { blobBytes, liveBytes }) => sum + blobBytes - liveBytes, 0),
    };
  }

  #toMove(pack: string): PackToMove {
    const { packRef, bits } = this.#marks.get(pack)!;
    const slots = this.#forwarding.has(pack) ? this.#forwarding.missing(pack) : slotsWithout(bits, undefined);
    return { packRef, slots };
  }
}

function deadShare({ blobBytes, liveBytes }: Candidate): number {
  return (blobBytes - liveBytes) / blobBytes;
}
