import { z } from "zod";
import { KiB } from "../bytes/size.ts";
import { AppError, hasCode } from "../errors.ts";
import type { Repository } from "./config.ts";
import { count, digestText, name, shortText, timeText, uuid, uuid7 } from "./fields.ts";
import { checkSourceName, drillKey, parseKey, Prefix } from "./names.ts";
import { openRecord, type RecordKind, sealRecord } from "./placed-record.ts";

/** A drill's record is never larger, in bytes as stored. */
const DRILL_SIZE_MAX = 64 * KiB;

const proofSchema = z
  .strictObject({
    kind: z.enum(["agent", "console", "script", "files"]),
    /** From the beginning of the command until it was given; null: it was not. */
    seconds: z.number().nonnegative().nullable(),
  })
  .readonly();

const drillSchema = z
  .strictObject({
    format: z.literal(1),
    repository: uuid,
    source: name,
    /** Its time says when it began, by the store's clock. */
    drill: uuid7,
    generation: uuid7,
    /** Of the generation's manifest as stored: what exactly was drilled. */
    digest: digestText,
    /** By the store's clock. */
    endedAt: timeText,
    outcome: z.enum(["passed", "failed"]),
    /** What was asked for. */
    proofs: z.array(proofSchema).min(1).max(4).readonly(),
    /** Why it failed. */
    error: z.strictObject({ code: shortText, message: shortText }).readonly().nullable(),
    /** What ran the guest; null: nothing was booted. */
    accelerator: z.enum(["kvm", "tcg"]).nullable(),
    seconds: z.number().nonnegative(),
    /** Of chunks, as they are stored. */
    bytesFetched: count,
    /** By the guest, or by whoever looked at the disks. */
    bytesRead: count,
    bytesWritten: count,
    /** Requests sent to the store, by operation. */
    requests: z.record(shortText, count).readonly(),
    host: shortText,
    writer: shortText,
  })
  .readonly();

/** What came of an attempt to use a generation (FORMAT.md, "Drills"). */
export type DrillRecord = z.infer<typeof drillSchema>;

/** Evidence that a generation can be used. */
export type DrillProof = z.infer<typeof proofSchema>;

const DRILL: RecordKind<DrillRecord> = { type: "run", noun: "drill", schema: drillSchema };

/** Records what came of a drill. */
export async function storeDrill(
  repository: Repository,
  record: DrillRecord,
  signal: AbortSignal,
): Promise<void> {
  await repository.store.put(drillKey(record.source, record.drill), encodeDrill(repository, record), signal);
}

/**
 * The last drill of each source, or of one, by source. Costs a LIST of runs, and a GET for each.
 *
 * @param onDamaged told of each that cannot be read.
 */
export async function lastDrills(
  repository: Repository,
  source: string | undefined,
  signal: AbortSignal,
  onDamaged: (error: AppError) => void,
): Promise<DrillRecord[]> {
  const prefix = source === undefined ? Prefix.runs : `${Prefix.runs}${checkSourceName(source)}/`;
  const newest = new Map<string, string>();
  for await (const { key } of repository.store.list(prefix, signal)) {
    const parsed = parseKey(key);
    if (parsed?.type !== "drill") continue;
    if (parsed.drill > (newest.get(parsed.source) ?? "")) newest.set(parsed.source, parsed.drill);
  }
  const records: DrillRecord[] = [];
  for (const [of, drill] of [...newest].sort()) {
    try {
      const stored = await repository.store.get(drillKey(of, drill), DRILL_SIZE_MAX, signal);
      records.push(decodeDrill(repository, of, drill, stored));
    } catch (error) {
      if (hasCode(error, "E_NO_OBJECT")) continue; // cleared away since it was listed
      if (!(error instanceof AppError) || error.kind !== "corrupt") throw error;
      onDamaged(error);
    }
  }
  return records;
}

/** The bytes to store. @throws AppError E_RECORD (corrupt) for a record that its own schema refuses. */
export function encodeDrill(repository: Repository, record: DrillRecord): Buffer {
  return sealRecord(repository, DRILL, drillKey(record.source, record.drill), record);
}

/** The record in stored bytes, held against its place (R15). @throws AppError E_RECORD, E_SEAL, E_MISPLACED (corrupt). */
export function decodeDrill(
  repository: Repository,
  source: string,
  drill: string,
  stored: Uint8Array,
): DrillRecord {
  return openRecord(repository, DRILL, drillKey(source, drill), stored, { source, drill });
}
