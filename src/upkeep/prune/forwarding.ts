import { AppError } from "../../errors.ts";
import type { Repository } from "../../repository/config.ts";
import type { Ways } from "../../repository/forward.ts";
import { Forwards } from "../../repository/forwards.ts";
import { parseKey, Prefix } from "../../repository/names.ts";
import type { PackRef } from "../../repository/pack-directory.ts";
import type { PackMarks } from "./pack-marks.ts";
import { hasBit, isWithin, newBits, setBit, slotsWithout } from "./slot-bits.ts";

/** A forward as LIST tells of it. */
export interface StoredForward {
  readonly pack: string;
  readonly id: string;
  readonly key: string;
  readonly size: number;
  readonly lastModified: Date;
}

/** Where a slot went. */
interface Place {
  readonly target: PackRef;
  readonly slot: number;
}

/** Of a pack that is mentioned, one that was read. */
interface KnownForward extends StoredForward {
  readonly ways: Ways;
}

/**
 * What forwards make of the marks: R3, the packs that they lead to are live; R2, a pack all of whose live slots they cover
 * is needed no more.
 *
 * Memory is a name for each forward, and the ways of those whose pack is mentioned. Each of these is read once.
 */
export class Forwarding {
  readonly #repository: Repository;
  readonly #marks: PackMarks;
  readonly #warn: (message: string) => void;
  #listed: ReadonlyMap<string, readonly StoredForward[]> = new Map();
  readonly #ways = new Map<string, Ways | "damaged">();
  /** Of the packs that forwards lead to, those that are there. */
  #there: ReadonlySet<string> = new Set();
  /** Slots that forwards lead to a pack that is there; undefined while it is being found out, which ends rings. */
  readonly #covered = new Map<string, Uint8Array | undefined>();

  constructor(repository: Repository, marks: PackMarks, warn: (message: string) => void) {
    this.#repository = repository;
    this.#marks = marks;
    this.#warn = warn;
  }

  /**
   * Reads what forwards say of the marked slots, and marks the slots that they lead to, to the end (R3). To be called
   * whenever marks were added.
   *
   * Costs a LIST; when there are forwards, one of the packs too, and a GET for each forward of a pack that is mentioned.
   *
   * @throws AppError E_PACK_CONFLICT (corrupt); errors of the store. A damaged forward is warned of, and leads nowhere.
   */
  async refresh(signal: AbortSignal): Promise<void> {
    this.#covered.clear();
    this.#listed = await listForwards(this.#repository, signal);
    const targets = new Set<string>();
    const waiting = [...this.#listed.keys()];
    const reader = new Forwards(this.#repository);
    while (waiting.length > 0) {
      signal.throwIfAborted();
      const pack = waiting.pop()!;
      if (!this.#marks.has(pack)) continue; // as far as is known: it comes again when a forward leads here
      for (const changed of await this.#follow(pack, reader, targets, signal)) {
        if (this.#listed.has(changed)) waiting.push(changed);
      }
    }
    this.#there = await packsThere(this.#repository, targets, signal);
  }

  /** True for a pack that any forward that is not damaged leads away from. */
  has(pack: string): boolean {
    return this.#known(pack).length > 0;
  }

  /** The marked slots of a pack that no forward leads to a pack that is there. */
  missing(pack: string): number[] {
    const bits = this.#marks.get(pack)?.bits;
    return bits === undefined ? [] : slotsWithout(bits, this.#coverage(pack));
  }

  /** R2: whether a pack that is mentioned may go, as far as forwards tell. */
  covers(pack: string): boolean {
    return this.has(pack) && this.missing(pack).length === 0;
  }

  /** Ids of all forwards that are there. */
  *ids(): Generator<string, void> {
    for (const stored of this.#listed.values()) for (const { id } of stored) yield id;
  }

  /** The packs that have forwards and are mentioned. */
  *packs(): Generator<string, void> {
    for (const pack of this.#listed.keys()) if (this.#marks.has(pack) && this.has(pack)) yield pack;
  }

  /** Where a marked slot lies in the end: in a pack that is there, and needed. */
  placeOf(pack: string, slot: number): Place | undefined {
    return this.#placeOf(pack, slot, new Set());
  }

  /** The packs that a pack's forwards lead to, and that are there. */
  targetsOf(pack: string): PackRef[] {
    const targets = new Map<string, PackRef>();
    for (const { ways } of this.#known(pack))
      for (const target of ways.targets) if (this.#there.has(target.pack)) targets.set(target.pack, target);
    return [...targets.values()];
  }

  /** True when no forward leads a marked slot of the pack straight to a pack that is there and needed, but a chain does. */
  isRoundabout(pack: string): boolean {
    const known = this.#known(pack);
    const straight = (slot: number): boolean =>
      known.some(({ ways }) => {
        const place = ways.placeOf(slot);
        return place !== undefined && this.#isHome(place.target.pack);
      });
    const { bits } = this.#marks.get(pack)!;
    return slotsWithout(bits, undefined).some(
      (slot) => !straight(slot) && this.placeOf(pack, slot) !== undefined,
    );
  }

  /**
   * Forwards that nobody needs: those of packs that nothing mentions, and those that add nothing to what others cover.
   *
   * @param condemned ids; what these cover is not relied on.
   */
  unneeded(condemned: ReadonlySet<string>): StoredForward[] {
    const found: StoredForward[] = [];
    for (const [pack, stored] of this.#listed) {
      if (this.#marks.has(pack)) found.push(...this.#redundant(pack, condemned));
      else found.push(...stored);
    }
    return found;
  }

  /** Enters what the forwards of a pack say. @returns packs of which slots became live by that. */
  async #follow(
    pack: string,
    reader: Forwards,
    targets: Set<string>,
    signal: AbortSignal,
  ): Promise<Set<string>> {
    const changed = new Set<string>();
    for (const stored of this.#listed.get(pack) ?? []) {
      const ways = await this.#read(stored, reader, signal);
      if (ways === "damaged") continue;
      const bits = Uint8Array.from(this.#marks.get(pack)!.bits); // marking may move them
      for (const { slot, target, to } of ways.moves()) {
        if (!hasBit(bits, slot)) continue;
        targets.add(target.pack);
        const number = this.#marks.enter(target);
        if (this.#marks.isMarked(number, to)) continue;
        this.#marks.mark(number, to, 1);
        changed.add(target.pack);
      }
    }
    return changed;
  }

  async #read(
    { pack, id, key }: StoredForward,
    reader: Forwards,
    signal: AbortSignal,
  ): Promise<Ways | "damaged"> {
    const known = this.#ways.get(key);
    if (known !== undefined) return known;
    const { packRef } = this.#marks.get(pack)!;
    const forward = await reader.tryLoad(packRef, id, signal);
    const ways = forward instanceof AppError ? "damaged" : forward.ways;
    if (forward instanceof AppError && forward.kind === "corrupt") this.#warn(forward.message);
    this.#ways.set(key, ways);
    return ways;
  }

  #known(pack: string): KnownForward[] {
    return (this.#listed.get(pack) ?? []).flatMap((stored) => {
      const ways = this.#ways.get(stored.key);
      return ways === undefined || ways === "damaged" ? [] : [{ ...stored, ways }];
    });
  }

  #coverage(pack: string): Uint8Array | undefined {
    if (this.#covered.has(pack)) return this.#covered.get(pack);
    const known = this.#known(pack);
    if (known.length === 0) return undefined;
    this.#covered.set(pack, undefined);
    const covered = newBits(this.#marks.get(pack)!.packRef.slotCount);
    for (const { ways } of known) {
      for (const { slot, target, to } of ways.moves()) {
        if (this.#isThere(target.pack, to)) setBit(covered, slot);
      }
    }
    this.#covered.set(pack, covered);
    return covered;
  }

  #placeOf(pack: string, slot: number, passed: Set<string>): Place | undefined {
    passed.add(pack);
    for (const { ways } of this.#known(pack)) {
      const place = ways.placeOf(slot);
      if (place === undefined || passed.has(place.target.pack)) continue;
      if (this.#isHome(place.target.pack)) return place;
      const further = this.#placeOf(place.target.pack, place.slot, passed);
      if (further !== undefined) return further;
    }
    return undefined;
  }

  /** A pack that is there to stay. */
  #isHome(pack: string): boolean {
    return this.#there.has(pack) && !this.covers(pack);
  }

  #isThere(pack: string, slot: number): boolean {
    if (this.#there.has(pack)) return true;
    const covered = this.#coverage(pack);
    return covered !== undefined && hasBit(covered, slot);
  }

  /** Sound ones first: those that lead straight to packs that are there and needed. */
  #redundant(pack: string, condemned: ReadonlySet<string>): StoredForward[] {
    const known = this.#known(pack);
    const rank = ({ id, ways }: KnownForward): number => {
      if (condemned.has(id)) return 2;
      return ways.targets.every((target) => this.#isHome(target.pack)) ? 0 : 1;
    };
    const { packRef, bits } = this.#marks.get(pack)!;
    const covered = newBits(packRef.slotCount);
    const redundant: StoredForward[] = [];
    for (const forward of known.toSorted((a, b) => rank(a) - rank(b) || byAge(a, b))) {
      const own = newBits(packRef.slotCount);
      for (const { slot, target, to } of forward.ways.moves())
        if (hasBit(bits, slot) && this.#isThere(target.pack, to)) setBit(own, slot);
      if (isWithin(own, covered)) redundant.push(forward);
      else if (!condemned.has(forward.id)) own.forEach((byte, at) => (covered[at]! |= byte));
    }
    return redundant;
  }
}

/** Newest first. */
function byAge(a: StoredForward, b: StoredForward): number {
  return b.lastModified.getTime() - a.lastModified.getTime() || (a.id < b.id ? -1 : 1);
}

async function listForwards(
  repository: Repository,
  signal: AbortSignal,
): Promise<ReadonlyMap<string, readonly StoredForward[]>> {
  const found = new Map<string, StoredForward[]>();
  for await (const { key, size, lastModified } of repository.store.list(Prefix.forwards, signal)) {
    const name = parseKey(key);
    if (name?.type !== "forward") continue;
    const stored = { pack: name.pack, id: name.id, key, size, lastModified };
    const others = found.get(name.pack);
    if (others === undefined) found.set(name.pack, [stored]);
    else others.push(stored);
  }
  return found;
}

async function packsThere(
  repository: Repository,
  wanted: ReadonlySet<string>,
  signal: AbortSignal,
): Promise<ReadonlySet<string>> {
  const there = new Set<string>();
  if (wanted.size === 0) return there;
  for await (const { key } of repository.store.list(Prefix.packs, signal)) {
    const name = parseKey(key);
    if (name?.type === "pack" && wanted.has(name.pack)) there.add(name.pack);
  }
  return there;
}
