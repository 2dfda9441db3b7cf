import type { PackRef } from "../../repository/pack-directory.ts";

/** A pack that some generation needs, with a bit for each of its slots. */
export class UsedPack {
  readonly packRef: PackRef;
  /** Generations that use any of its slots. */
  readonly generations = new Set<string>();
  readonly #slots: Uint8Array;

  constructor(packRef: PackRef) {
    this.packRef = packRef;
    this.#slots = new Uint8Array(Math.ceil(packRef.slotCount / 8));
  }

  useAll(): void {
    for (let slot = 0; slot < this.packRef.slotCount; slot++) this.use(slot);
  }

  /** @param slot below the pack's `slotCount`. */
  use(slot: number): void {
    this.#slots[slot >> 3]! |= 1 << (slot & 7);
  }

  has(slot: number): boolean {
    return (this.#slots[slot >> 3]! & (1 << (slot & 7))) !== 0;
  }

  /** In order. */
  slots(): number[] {
    const used: number[] = [];
    for (let slot = 0; slot < this.packRef.slotCount; slot++) if (this.has(slot)) used.push(slot);
    return used;
  }

  get slotCount(): number {
    let count = 0;
    for (let byte of this.#slots) for (; byte !== 0; byte &= byte - 1) count++;
    return count;
  }
}

/** By pack. Memory is a bit a slot. */
export type UsedPacks = Map<string, UsedPack>;

export function usedPack(used: UsedPacks, packRef: PackRef): UsedPack {
  let pack = used.get(packRef.pack);
  if (pack === undefined) {
    pack = new UsedPack(packRef);
    used.set(packRef.pack, pack);
  }
  return pack;
}
