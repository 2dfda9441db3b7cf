import { z } from "zod";
import { KiB } from "../bytes/size.ts";
import { AppError, hasCode } from "../errors.ts";
import type { Repository } from "./config.ts";
import { count, timeText, uuid } from "./fields.ts";
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

/** A `damaged/` object: what it says, or why it cannot be read. */
export interface DamagedRecord {
  readonly key: string;
  readonly pack: string;
  readonly slots: readonly number[];
  /** Set for one that is damaged itself; `slots` is empty then. */
  readonly error?: AppError;
}

/** Every record. Costs a LIST, and a GET for each. */
export async function* damagedRecords(
  repository: Repository,
  signal: AbortSignal,
): AsyncGenerator<DamagedRecord, void> {
  for await (const { key } of repository.store.list(Prefix.damaged, signal)) {
    const name = parseKey(key);
    if (name?.type !== "damaged") continue;
    const { pack } = name;
    try {
      yield { key, pack, slots: await readRecord(repository, key, pack, signal) };
    } catch (error) {
      if (!(error instanceof AppError) || error.kind !== "corrupt") throw error;
      yield { key, pack, slots: [], error };
    }
  }
}

/**
 * Every slot that is recorded as bad. Memory grows with the damage only.
 *
 * @param onUnreadable told of each record that is damaged itself, which is then left out.
 * @throws AppError E_RECORD, E_SEAL (corrupt) without `onUnreadable`.
 */
export async function readDamaged(
  repository: Repository,
  signal: AbortSignal,
  onUnreadable?: (error: AppError) => void,
): Promise<DamagedSlots> {
  const found = new Map<string, Set<number>>();
  for await (const { pack, slots, error } of damagedRecords(repository, signal)) {
    if (error !== undefined) {
      if (onUnreadable === undefined) throw error;
      onUnreadable(error);
    }
    const known = found.get(pack) ?? new Set<number>();
    for (const slot of slots) known.add(slot);
    if (known.size > 0) found.set(pack, known);
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
