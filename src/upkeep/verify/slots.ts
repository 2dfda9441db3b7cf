import { AppError } from "../../errors.ts";
import { recordDamaged, type DamagedSlots } from "../../repository/damaged.ts";
import type { ReadTools } from "../../repository/read-tools.ts";
import type { BadSlots } from "./maps.ts";
import { attempt } from "./problems.ts";
import type { UsedPack } from "./used-packs.ts";

/** What is known of bad slots: by this run, where it has looked, and else by earlier ones. */
export class SlotFindings {
  recorded = 0;
  healed = 0;
  readonly #tools: Pick<ReadTools, "repository" | "directories">;
  readonly #known: DamagedSlots;
  readonly #warn: (message: string) => void;
  readonly #looked = new Map<string, ReadonlySet<number>>();
  #readOnly: boolean;

  /** @param options.record false: nothing is written. */
  constructor(
    tools: Pick<ReadTools, "repository" | "directories">,
    known: DamagedSlots,
    options: { readonly record: boolean; readonly warn: (message: string) => void },
  ) {
    this.#tools = tools;
    this.#known = known;
    this.#warn = options.warn;
    this.#readOnly = !options.record;
  }

  /** True when a run has looked at this pack now. */
  hasLooked(pack: string): boolean {
    return this.#looked.has(pack);
  }

  /** All used slots of a pack have been looked at; these are bad. */
  async found(pack: UsedPack, bad: readonly number[], signal: AbortSignal): Promise<void> {
    const { pack: id } = pack.packRef;
    const known = this.#known.get(id);
    const slots = new Set(bad);
    this.#looked.set(id, slots);
    for (const slot of known ?? []) if (pack.has(slot) && !slots.has(slot)) this.healed++;
    const news = bad.filter((slot) => known?.has(slot) !== true);
    if (news.length === 0 || this.#readOnly) return;
    try {
      await recordDamaged(this.#tools.repository, id, news, signal);
      this.recorded += news.length;
      for (const slot of news) await this.#recordWhereItLies(pack, slot, signal);
    } catch (error) {
      if (!(error instanceof AppError) || (error.kind !== "credentials" && error.kind !== "full"))
        throw error;
      this.#readOnly = true;
      this.#warn(
        `What is bad could not be recorded, so backups will go on using it: ${error.message}; ` +
          "run verify with a credential that may write",
      );
    }
  }

  /** Of a pack that was rewritten the blob lies in another, which must not serve as a duplicate either. */
  async #recordWhereItLies({ packRef }: UsedPack, slot: number, signal: AbortSignal): Promise<void> {
    const { repository, directories } = this.#tools;
    if (!directories.isGone(packRef.pack)) return;
    const { value: places } = await attempt(() => directories.places(packRef, [slot], signal), signal);
    const place = places?.get(slot);
    if (place !== undefined) await recordDamaged(repository, place.directory.pack, [place.slot], signal);
  }

  /** The bad ones among the used, by pack. */
  bad(packs: readonly UsedPack[]): Map<string, BadSlots & { readonly size: number }> {
    const bad = new Map<string, ReadonlySet<number>>();
    for (const pack of packs) {
      const { pack: id } = pack.packRef;
      const known = [...(this.#known.get(id) ?? [])].filter(
        (slot) => slot < pack.packRef.slotCount && pack.has(slot),
      );
      const slots = this.#looked.get(id) ?? new Set(known);
      if (slots.size > 0) bad.set(id, slots);
    }
    return bad;
  }
}
