import { z } from "zod";
import { MiB } from "../bytes/size.ts";
import { AppError, hasCode } from "../errors.ts";
import type { Repository } from "./config.ts";
import { timeText, uuid } from "./fields.ts";
import { condemnedKey, newUuid, parseKey, Prefix } from "./names.ts";
import { encodeRecord, parseRecord } from "./record.ts";

const RECORD_SIZE_MAX = 64 * MiB;

/** Names a record is written with at most: 39 bytes each, so that backups, which read all records, can do so cheaply. */
const NAMES_MAX = 200_000;

const condemnedSchema = z
  .strictObject({
    format: z.literal(1),
    repository: uuid,
    prune: uuid,
    /** By the store's clock; deletion comes a grace later. */
    since: timeText,
    packs: z.array(uuid).readonly(),
    layers: z.array(uuid).readonly(),
    /** Ids of forwards that nothing needs any more; absent when there are none. */
    forwards: z.array(uuid).readonly().optional(),
  })
  .readonly();

/** What a prune is going to delete: stays as a tombstone afterwards (FORMAT.md, "Condemned and damaged"). */
export type CondemnedRecord = z.infer<typeof condemnedSchema>;

/** Every object that some prune has condemned. */
export interface Condemned {
  readonly packs: ReadonlySet<string>;
  readonly layers: ReadonlySet<string>;
  /** By id. */
  readonly forwards: ReadonlySet<string>;
}

/** The stored form. @param key `condemned/<prune>.json`. */
export function encodeCondemned(repository: Repository, key: string, record: CondemnedRecord): Buffer {
  return repository.sealer.sealObject("condemned", key, encodeRecord(record));
}

/** The record in stored bytes, held against its place (R15). @throws AppError E_RECORD, E_SEAL, E_MISPLACED (corrupt). */
export function decodeCondemned(repository: Repository, key: string, stored: Uint8Array): CondemnedRecord {
  const plain = repository.sealer.openObject("condemned", key, stored);
  const record = parseRecord(condemnedSchema, plain, `record ${key}`);
  if (record.repository === repository.config.repository && condemnedKey(record.prune) === key) return record;
  const message = `The record ${key} belongs elsewhere and was put there`;
  throw new AppError("corrupt", "E_MISPLACED", message, { key });
}

/** What is to be condemned together. */
export interface ToCondemn {
  readonly packs: readonly string[];
  readonly layers: readonly string[];
  /** Ids. */
  readonly forwards: readonly string[];
}

/**
 * Condemns packs, layers and forwards; durable when it resolves. What is too much for one record goes into several.
 *
 * @param since by the store's clock, at or before this moment.
 * @returns how many records were written; none for nothing.
 */
export async function condemn(
  repository: Repository,
  { packs, layers, forwards }: ToCondemn,
  since: Date,
  signal: AbortSignal,
  namesMax: number = NAMES_MAX,
): Promise<number> {
  const all = [
    ...packs.map((pack) => ({ pack })),
    ...layers.map((layer) => ({ layer })),
    ...forwards.map((forward) => ({ forward })),
  ];
  let written = 0;
  for (let from = 0; from < all.length; from += namesMax) {
    const some = all.slice(from, from + namesMax);
    const someForwards = some.flatMap((one) => ("forward" in one ? [one.forward] : []));
    const prune = newUuid();
    const record: CondemnedRecord = {
      format: 1,
      repository: repository.config.repository,
      prune,
      since: since.toISOString(),
      packs: some.flatMap((one) => ("pack" in one ? [one.pack] : [])),
      layers: some.flatMap((one) => ("layer" in one ? [one.layer] : [])),
      ...(someForwards.length > 0 && { forwards: someForwards }),
    };
    const key = condemnedKey(prune);
    await repository.store.put(key, encodeCondemned(repository, key, record), signal);
    written++;
  }
  return written;
}

/** Every record, in the order of their keys. Costs a LIST, and a GET for each. */
export async function* loadCondemned(
  repository: Repository,
  signal: AbortSignal,
): AsyncGenerator<CondemnedRecord, void> {
  for await (const { key } of repository.store.list(Prefix.condemned, signal)) {
    if (parseKey(key)?.type !== "condemned") continue;
    let sealed: Buffer;
    try {
      sealed = await repository.store.get(key, RECORD_SIZE_MAX, signal);
    } catch (error) {
      if (hasCode(error, "E_NO_OBJECT")) continue; // of long ago, and cleared away since it was listed
      throw error;
    }
    yield decodeCondemned(repository, key, sealed);
  }
}

/** What all records name. Costs as `loadCondemned`. */
export async function readCondemned(repository: Repository, signal: AbortSignal): Promise<Condemned> {
  const packs = new Set<string>();
  const layers = new Set<string>();
  const forwards = new Set<string>();
  for await (const record of loadCondemned(repository, signal)) {
    for (const pack of record.packs) packs.add(pack);
    for (const layer of record.layers) layers.add(layer);
    for (const forward of record.forwards ?? []) forwards.add(forward);
  }
  return { packs, layers, forwards };
}
