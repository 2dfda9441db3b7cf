import { z } from "zod";
import { KiB } from "../bytes/size.ts";
import { AppError, hasCode } from "../errors.ts";
import type { Repository } from "./config.ts";
import { name, shortText, timeText, uuid, uuid7 } from "./fields.ts";
import { loadGeneration, type GenerationName } from "./generations.ts";
import { Prefix, checkSourceName, holdKey, parseKey } from "./names.ts";
import { openRecord, type RecordKind, sealRecord } from "./placed-record.ts";

/** A hold is never larger, in bytes as stored. */
const HOLD_SIZE_MAX = 16 * KiB;

const holdSchema = z
  .strictObject({
    format: z.literal(1),
    repository: uuid,
    source: name,
    generation: uuid7,
    /** By the store's clock. */
    heldAt: timeText,
    /** For people. */
    reason: shortText.nullable(),
    host: shortText,
    writer: shortText,
  })
  .readonly();

/** A generation that must not be forgotten (FORMAT.md, "Holds"). */
export type Hold = z.infer<typeof holdSchema>;

const HOLD: RecordKind<Hold> = { type: "hold", noun: "hold", schema: holdSchema };

/** Holds by generation; undefined for one that cannot be read, which holds all the same. */
export type Holds = ReadonlyMap<string, Hold | undefined>;

/**
 * Holds a generation. The generation is looked up once the hold is there: only then a `forget` that began earlier cannot
 * have missed it.
 *
 * @returns the hold that is there now, and whether it was there before: the first one stands, with its reason.
 * @throws AppError E_NO_GENERATION (notFound): it was forgotten meanwhile, and no hold is left.
 */
export async function holdGeneration(
  repository: Repository,
  { source, generation }: GenerationName,
  { reason, host, writer }: Pick<Hold, "reason" | "host" | "writer">,
  signal: AbortSignal,
): Promise<{ readonly hold: Hold; readonly before: boolean }> {
  const { store, config } = repository;
  const key = holdKey(source, generation);
  const heldAt = (await store.now(signal)).toISOString();
  const hold: Hold = {
    format: 1,
    repository: config.repository,
    source,
    generation,
    heldAt,
    reason,
    host,
    writer,
  };
  const before = await store.put(key, encodeHold(repository, hold), signal).then(
    () => undefined,
    async (error: unknown) => {
      if (!hasCode(error, "E_EXISTS")) throw error;
      return await loadHold(repository, source, generation, signal);
    },
  );
  try {
    await loadGeneration(repository, { source, generation }, signal);
  } catch (error) {
    // any other error leaves the hold: it does no harm, and the generation may well be there
    if (hasCode(error, "E_NO_GENERATION")) await store.delete([key], signal);
    throw error;
  }
  return { hold: before ?? hold, before: before !== undefined };
}

/**
 * Ends a hold, readable or not.
 * @throws AppError E_NOT_HELD (notFound).
 */
export async function releaseGeneration(
  repository: Repository,
  { source, generation }: GenerationName,
  signal: AbortSignal,
): Promise<void> {
  const key = holdKey(source, generation);
  if ((await repository.store.head(key, signal)) === undefined) {
    const message = `Generation ${generation} of ${source} is not held`;
    throw new AppError("notFound", "E_NOT_HELD", message, { source, generation });
  }
  await repository.store.delete([key], signal);
}

/** What is held, of one source or of all, by LIST alone. */
export async function listHeld(
  repository: Repository,
  source: string | undefined,
  signal: AbortSignal,
): Promise<GenerationName[]> {
  const prefix = source === undefined ? Prefix.holds : `${Prefix.holds}${checkSourceName(source)}/`;
  const held: GenerationName[] = [];
  for await (const { key } of repository.store.list(prefix, signal)) {
    const parsed = parseKey(key);
    if (parsed?.type === "hold") held.push({ source: parsed.source, generation: parsed.generation });
  }
  return held;
}

/**
 * Every hold of one source, or of all. Costs a LIST, and a GET for each.
 * @param onDamaged told of each that cannot be read.
 */
export async function loadHolds(
  repository: Repository,
  source: string | undefined,
  signal: AbortSignal,
  onDamaged: (error: AppError) => void,
): Promise<Holds> {
  const holds = new Map<string, Hold | undefined>();
  for (const held of await listHeld(repository, source, signal)) {
    try {
      holds.set(held.generation, await loadHold(repository, held.source, held.generation, signal));
    } catch (error) {
      if (hasCode(error, "E_NO_OBJECT")) continue; // released since it was listed
      if (!(error instanceof AppError) || error.kind !== "corrupt") throw error;
      holds.set(held.generation, undefined);
      onDamaged(error);
    }
  }
  return holds;
}

/** The bytes to store. @throws AppError E_RECORD (corrupt) for a hold that its own schema refuses. */
export function encodeHold(repository: Repository, hold: Hold): Buffer {
  return sealRecord(repository, HOLD, holdKey(hold.source, hold.generation), hold);
}

/** The hold in stored bytes, held against its place (R15). @throws AppError E_RECORD, E_SEAL, E_MISPLACED (corrupt). */
export function decodeHold(
  repository: Repository,
  source: string,
  generation: string,
  stored: Uint8Array,
): Hold {
  return openRecord(repository, HOLD, holdKey(source, generation), stored, { source, generation });
}

async function loadHold(
  repository: Repository,
  source: string,
  generation: string,
  signal: AbortSignal,
): Promise<Hold> {
  const stored = await repository.store.get(holdKey(source, generation), HOLD_SIZE_MAX, signal);
  return decodeHold(repository, source, generation, stored);
}
