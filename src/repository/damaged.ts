import { z } from "zod";
import { KiB } from "../bytes/size.ts";
import { hasCode } from "../errors.ts";
import type { Repository } from "./config.ts";
import { count, timeText, uuid } from "./fields.ts";
import type { DiskMap } from "./layer-stack.ts";
import { damagedKey, newUuid, parseKey, Prefix } from "./names.ts";
import { SLOTS_MAX } from "./pack-directory.ts";
import { encodeRecord, parseRecord } from "./record.ts";

/** A record names at most every slot of a pack. */
const RECORD_SIZE_MAX = 512 * KiB;

const damagedSchema = z
  .strictObject({
    format: z.literal(1),
    repository: uuid,
    pack: uuid,
    foundAt: timeText,
    /** Ascending. */
    slots: z
      .array(count.max(SLOTS_MAX - 1))
      .min(1)
      .max(SLOTS_MAX),
  })
  .readonly();

/** Slots that were found bad, by pack. */
export type DamagedSlots = ReadonlyMap<string, ReadonlySet<number>>;

/**
 * Records slots whose bytes are not what was stored, as `damaged/<pack>/<uuid>.json`. From then on they are no
 * duplicates, and the next run of every source that uses them stores those chunks again (R12).
 *
 * @param slots 1 to 65,536 of the pack's.
 */
export async function recordDamaged(
  repository: Repository,
  pack: string,
  slots: readonly number[],
  signal: AbortSignal,
): Promise<void> {
  const { store, sealer, config } = repository;
  const key = damagedKey(pack, newUuid());
  const document: z.infer<typeof damagedSchema> = {
    format: 1,
    repository: config.repository,
    pack,
    foundAt: (await store.now(signal)).toISOString(),
    slots: [...new Set(slots)].sort((a, b) => a - b),
  };
  await store.put(key, sealer.sealObject("damaged", key, encodeRecord(document)), signal);
}

/** Every slot that is recorded as bad. Memory grows with the damage only. @throws AppError E_RECORD, E_SEAL (corrupt). */
export async function readDamaged(repository: Repository, signal: AbortSignal): Promise<DamagedSlots> {
  const found = new Map<string, Set<number>>();
  for await (const { key } of repository.store.list(Prefix.damaged, signal)) {
    const name = parseKey(key);
    if (name?.type !== "damaged") continue;
    const slots = await readRecord(repository, key, name.pack, signal);
    const known = found.get(name.pack) ?? new Set<number>();
    for (const slot of slots) known.add(slot);
    found.set(name.pack, known);
  }
  return found;
}

async function readRecord(
  repository: Repository,
  key: string,
  pack: string,
  signal: AbortSignal,
): Promise<readonly number[]> {
  let sealed: Buffer;
  try {
    sealed = await repository.store.get(key, RECORD_SIZE_MAX, signal);
  } catch (error) {
    if (hasCode(error, "E_NO_OBJECT")) return []; // prune was quicker: its pack is gone too
    throw error;
  }
  const what = `record ${key}`;
  const own = damagedSchema.and(
    z.looseObject({ repository: z.literal(repository.config.repository), pack: z.literal(pack) }),
  );
  return parseRecord(own, repository.sealer.openObject("damaged", key, sealed), what).slots;
}

/** Slots not to be relied on: what `readDamaged` found, or more (all slots of a condemned pack). */
export interface BadSlots {
  /** How many packs have any; 0: none. */
  readonly size: number;
  get(pack: string): { has(slot: number): boolean } | undefined;
}

/**
 * R12: the chunks of a disk that live in damaged slots, in order; a run stores them again as if they were dirty.
 * Reads nothing when there is no damage.
 */
export async function* damagedChunks(
  map: DiskMap,
  damaged: BadSlots,
  signal: AbortSignal,
): AsyncGenerator<{ readonly first: number; readonly count: number }, void> {
  if (damaged.size === 0) return;
  for await (const { first, count: chunks, where } of map.runs(0, map.chunks, signal)) {
    if (where === "zero") continue;
    const slots = damaged.get(where.packRef.pack);
    if (slots === undefined) continue;
    let bad = 0; // length of the stretch of bad slots that ends here
    for (let index = 0; index <= chunks; index++) {
      if (index < chunks && slots.has(where.slot + index)) {
        bad += 1;
        continue;
      }
      if (bad > 0) yield { first: first + index - bad, count: bad };
      bad = 0;
    }
  }
}

const EVERY_SLOT = { has: (): boolean => true };

/** The bad slots, and all slots of packs that a prune condemned (R1). */
export function withCondemned(bad: BadSlots, packs: ReadonlySet<string>): BadSlots {
  return { size: bad.size + packs.size, get: (pack) => (packs.has(pack) ? EVERY_SLOT : bad.get(pack)) };
}
