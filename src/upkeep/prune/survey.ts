import type { Repository } from "../../repository/config.ts";
import type { CondemnedRecord } from "../../repository/condemned.ts";
import { parseKey, Prefix } from "../../repository/names.ts";
import type { Forwarding } from "./forwarding.ts";
import type { Live } from "./mark.ts";

/** Objects counted, and their bytes as stored. */
export interface Tally {
  readonly packs: number;
  readonly layers: number;
  readonly bytes: number;
}

/** A pack, layer or forward that nobody needs. */
export interface DeadObject {
  readonly type: "pack" | "layer" | "forward";
  readonly id: string;
  readonly key: string;
  readonly size: number;
}

/** What became of the packs and layers that are stored. */
export interface Survey {
  /** Mentioned by what counts. */
  readonly live: Tally;
  /** Mentioned again, or still, although condemned: never deleted while they are, and no backup relies on them. */
  readonly kept: Tally;
  /** Dead, but too young: perhaps of a run that has not committed yet. */
  readonly young: Tally;
  /** Condemned not long enough ago. */
  readonly waiting: Tally;
  /** Dead, and old enough to be condemned. */
  readonly fresh: readonly DeadObject[];
  /** Dead, and condemned long enough ago to be deleted. */
  readonly expired: readonly DeadObject[];
  /** Packs that are there, for records about packs that are not. */
  readonly packsThere: ReadonlySet<string>;
  /** What records name and is there still. */
  readonly condemnedThere: ReadonlySet<string>;
}

/** Since when a pack or layer is condemned, milliseconds since 1970; by every record, the oldest counts. */
export type CondemnedSince = ReadonlyMap<string, number>;

export function condemnedSince(records: readonly CondemnedRecord[]): CondemnedSince {
  const since = new Map<string, number>();
  for (const record of records) {
    const at = Date.parse(record.since);
    for (const id of [...record.packs, ...record.layers, ...(record.forwards ?? [])])
      since.set(id, Math.min(since.get(id) ?? at, at));
  }
  return since;
}

/** Which records name packs: they alone are asked whether a pack is there, so only those are kept in memory. */
export interface SurveyOptions {
  /** What is condemned at or before it may be deleted, what is older may be condemned (R7). */
  readonly limit: Date;
  readonly condemned: CondemnedSince;
  /** Packs of which it must be told whether they are there. */
  readonly wanted: ReadonlySet<string>;
  /** Told of each pack that is there and needed. */
  readonly onNeededPack: (
    pack: string,
    state: { readonly young: boolean; readonly condemned: boolean },
  ) => void;
}

/**
 * Holds every stored pack and layer against what is live, by LIST alone. Keys of other forms are passed over.
 *
 * A pack that forwards stand in for in all its live slots counts as dead here (R2).
 */
export async function survey(
  repository: Repository,
  live: Live,
  forwarding: Forwarding,
  { limit, condemned, wanted, onNeededPack }: SurveyOptions,
  signal: AbortSignal,
): Promise<Survey> {
  const sums = { live: new Sum(), kept: new Sum(), young: new Sum(), waiting: new Sum() };
  const fresh: DeadObject[] = [];
  const expired: DeadObject[] = [];
  const packsThere = new Set<string>();
  const condemnedThere = new Set<string>();
  for (const prefix of [Prefix.packs, Prefix.layers]) {
    for await (const { key, size, lastModified } of repository.store.list(prefix, signal)) {
      const one = deadObject(key, size);
      if (one === undefined) continue;
      if (wanted.has(one.id)) packsThere.add(one.id);
      const since = condemned.get(one.id);
      if (since !== undefined) condemnedThere.add(one.id);
      if (isNeeded(live, forwarding, one)) {
        sums[since === undefined ? "live" : "kept"].add(one);
        const state = { young: lastModified > limit, condemned: since !== undefined };
        if (one.type === "pack") onNeededPack(one.id, state);
      } else if (since !== undefined && since <= limit.getTime()) expired.push(one);
      else if (since !== undefined) sums.waiting.add(one);
      else if (lastModified <= limit) fresh.push(one);
      else sums.young.add(one);
    }
  }
  for (const id of forwarding.ids()) if (condemned.has(id)) condemnedThere.add(id);
  return { ...sums, fresh, expired, packsThere, condemnedThere };
}

/** Whether anything that counts would miss the pack or layer. */
export function isNeeded(
  live: Live,
  forwarding: Forwarding,
  { type, id }: Pick<DeadObject, "type" | "id">,
): boolean {
  return type === "pack" ? live.packs.has(id) && !forwarding.covers(id) : live.layers.has(id);
}

export function tallyOf(objects: readonly DeadObject[]): Tally {
  const sum = new Sum();
  for (const one of objects) sum.add(one);
  return sum;
}

class Sum implements Tally {
  packs = 0;
  layers = 0;
  bytes = 0;

  add({ type, size }: DeadObject): void {
    if (type === "pack") this.packs++;
    if (type === "layer") this.layers++;
    this.bytes += size;
  }
}

function deadObject(key: string, size: number): DeadObject | undefined {
  const name = parseKey(key);
  if (name?.type === "pack") return { type: "pack", id: name.pack, key, size };
  if (name?.type === "layer") return { type: "layer", id: name.layer, key, size };
  return undefined;
}
