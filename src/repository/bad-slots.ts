import { AppError } from "../errors.ts";
import type { Condemned } from "./condemned.ts";
import type { DamagedSlots } from "./damaged.ts";
import type { Forwards } from "./forwards.ts";
import type { DiskMap } from "./layer-stack.ts";
import type { PackRef } from "./pack-directory.ts";

/** A bit of a set of slots. */
interface SlotSet {
  has(slot: number): boolean;
}

const EVERY_SLOT: SlotSet = { has: () => true };

/**
 * Slots that nothing may go on standing on: those found damaged (R12), and those of packs that a prune condemned (R1).
 *
 * A slot of a rewritten pack lives on where a forward leads (R2), so that it is bad only when that is: else the backup
 * after each prune would store again what the prune has just moved.
 */
export class BadSlots {
  readonly #damaged: DamagedSlots;
  readonly #condemned: Pick<Condemned, "packs" | "forwards">;
  readonly #forwards: Forwards;
  /** Of packs that have forwards; undefined while it is being found out, which ends rings of forwards. */
  readonly #known = new Map<string, SlotSet | undefined>();

  /**
   * @param condemned a forward that is condemned itself is none.
   * @param forwards listed after `condemned` was read, and not before.
   */
  constructor(damaged: DamagedSlots, condemned: Pick<Condemned, "packs" | "forwards">, forwards: Forwards) {
    this.#damaged = damaged;
    this.#condemned = condemned;
    this.#forwards = forwards;
  }

  /** True when there are none at all. */
  get none(): boolean {
    return this.#damaged.size === 0 && this.#condemned.packs.size === 0;
  }

  /**
   * The bad slots of a pack; undefined: none. Costs a LIST for the first pack, and a GET for each of its forwards and
   * of those behind them.
   *
   * @throws errors of the store. A damaged forward leads nowhere.
   */
  async of(ref: PackRef, signal: AbortSignal): Promise<SlotSet | undefined> {
    if (this.none) return undefined;
    const { pack } = ref;
    if (this.#known.has(pack)) return this.#known.get(pack) ?? EVERY_SLOT;
    const listed = await this.#forwards.ids(pack, signal);
    const ids = listed.filter((id) => !this.#condemned.forwards.has(id));
    if (ids.length === 0) return this.#condemned.packs.has(pack) ? EVERY_SLOT : this.#damaged.get(pack);
    this.#known.set(pack, undefined);
    const bad = await this.#ofMoved(ref, ids, signal);
    this.#known.set(pack, bad);
    return bad;
  }

  async #ofMoved(ref: PackRef, ids: readonly string[], signal: AbortSignal): Promise<SlotSet> {
    const [nowhere, good, ill] = [0, 1, 2] as const;
    const fate = new Uint8Array(ref.slotCount);
    for (const id of ids) {
      const forward = await this.#forwards.tryLoad(ref, id, signal);
      if (forward instanceof AppError) continue;
      const there = new Map<string, SlotSet | undefined>();
      for (const target of forward.ways.targets) there.set(target.pack, await this.of(target, signal));
      for (const { slot, target, to } of forward.ways.moves()) {
        if (there.get(target.pack)?.has(to) !== true) fate[slot] = good;
        else if (fate[slot] === nowhere) fate[slot] = ill;
      }
    }
    const damaged = this.#damaged.get(ref.pack);
    const condemned = this.#condemned.packs.has(ref.pack);
    return {
      has: (slot) =>
        damaged?.has(slot) === true || fate[slot] === ill || (condemned && fate[slot] === nowhere),
    };
  }
}

/**
 * The chunks of a disk that live in bad slots, in order; a run stores them again as if they were dirty. Reads nothing
 * when there are no bad slots.
 */
export async function* badChunks(
  map: DiskMap,
  bad: BadSlots,
  signal: AbortSignal,
): AsyncGenerator<{ readonly first: number; readonly count: number }, void> {
  if (bad.none) return;
  for await (const { first, count: chunks, where } of map.runs(0, map.chunks, signal)) {
    if (where === "zero") continue;
    const slots = await bad.of(where.packRef, signal);
    if (slots === undefined) continue;
    let length = 0; // of the stretch of bad slots that ends here
    for (let index = 0; index <= chunks; index++) {
      if (index < chunks && slots.has(where.slot + index)) {
        length += 1;
        continue;
      }
      if (length > 0) yield { first: first + index - length, count: length };
      length = 0;
    }
  }
}
