import { z } from "zod";
import { MiB } from "../bytes/size.ts";
import { hasCode } from "../errors.ts";
import type { Repository } from "./config.ts";
import { timeText, uuid } from "./fields.ts";
import { parseKey, Prefix } from "./names.ts";
import { encodeRecord, parseRecord } from "./record.ts";

/** A record names at most a few hundred thousand objects. */
const RECORD_SIZE_MAX = 64 * MiB;

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

/** Reads every record. Costs a LIST, and a GET for each prune that has not been forgotten. */
export async function readCondemned(repository: Repository, signal: AbortSignal): Promise<Condemned> {
  const packs = new Set<string>();
  const layers = new Set<string>();
  const forwards = new Set<string>();
  for await (const { key } of repository.store.list(Prefix.condemned, signal)) {
    if (parseKey(key)?.type !== "condemned") continue;
    let sealed: Buffer;
    try {
      sealed = await repository.store.get(key, RECORD_SIZE_MAX, signal);
    } catch (error) {
      if (hasCode(error, "E_NO_OBJECT")) continue; // withdrawn since it was listed
      throw error;
    }
    const plain = repository.sealer.openObject("condemned", key, sealed);
    const record = parseRecord(condemnedSchema, plain, `record ${key}`);
    for (const pack of record.packs) packs.add(pack);
    for (const layer of record.layers) layers.add(layer);
    for (const forward of record.forwards ?? []) forwards.add(forward);
  }
  return { packs, layers, forwards };
}
