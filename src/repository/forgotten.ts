import { z } from "zod";
import { KiB } from "../bytes/size.ts";
import { hasCode } from "../errors.ts";
import type { Repository } from "./config.ts";
import { name, timeText, uuid, uuid7 } from "./fields.ts";
import type { GenerationName } from "./generations.ts";
import { decodeManifest, MANIFEST_SIZE_MAX, type StoredManifest } from "./manifest.ts";
import { Prefix, checkSourceName, forgottenKey, parseKey } from "./names.ts";
import { openRecord, type RecordKind, sealRecord } from "./placed-record.ts";

/** A manifest in base64, and the other fields. */
const FORGOTTEN_SIZE_MAX = 4 * Math.ceil(MANIFEST_SIZE_MAX / 3) + 4 * KiB;

const forgottenSchema = z
  .strictObject({
    format: z.literal(1),
    repository: uuid,
    source: name,
    generation: uuid7,
    /** By the store's clock, before the manifest was deleted. */
    forgottenAt: timeText,
    /** The stored bytes of the manifest. */
    manifest: z.base64(),
  })
  .readonly();

/** What is kept of a generation that is about to be forgotten (FORMAT.md, "Holds and forgetting"). */
export type Forgotten = z.infer<typeof forgottenSchema>;

const FORGOTTEN: RecordKind<Forgotten> = { type: "forgotten", noun: "record", schema: forgottenSchema };

/** A record as LIST tells it. */
export interface ForgottenName extends GenerationName {
  /** When it was forgotten last, by the store's clock. */
  readonly lastModified: Date;
}

/**
 * Keeps a manifest, for whoever wants the generation back. To be done before the manifest is deleted, so that whoever
 * lists manifests first and these records next finds the one or the other.
 *
 * One that was forgotten, brought back and is forgotten again has its record replaced: the latest time counts.
 *
 * @param stored the manifest's stored bytes, at most 4 MiB.
 */
export async function keepForgotten(
  repository: Repository,
  { source, generation }: GenerationName,
  stored: Uint8Array,
  now: Date,
  signal: AbortSignal,
): Promise<void> {
  const record: Forgotten = {
    format: 1,
    repository: repository.config.repository,
    source,
    generation,
    forgottenAt: now.toISOString(),
    manifest: Buffer.from(stored).toString("base64"),
  };
  const key = forgottenKey(source, generation);
  await repository.store.replace(key, encodeForgotten(repository, record), signal);
}

/** What was forgotten of one source, or of all, by LIST alone; some may have been brought back. */
export async function listForgotten(
  repository: Repository,
  source: string | undefined,
  signal: AbortSignal,
): Promise<ForgottenName[]> {
  const prefix = source === undefined ? Prefix.forgotten : `${Prefix.forgotten}${checkSourceName(source)}/`;
  const found: ForgottenName[] = [];
  for await (const { key, lastModified } of repository.store.list(prefix, signal)) {
    const parsed = parseKey(key);
    if (parsed?.type !== "forgotten") continue;
    found.push({ source: parsed.source, generation: parsed.generation, lastModified });
  }
  return found;
}

/**
 * A forgotten manifest, its stored bytes and what they say. Undefined when there is no record of it.
 * @throws AppError E_RECORD, E_SEAL, E_MISPLACED (corrupt), of the record or of the manifest in it.
 */
export async function findForgotten(
  repository: Repository,
  { source, generation }: GenerationName,
  signal: AbortSignal,
): Promise<{ record: Forgotten; stored: Buffer; manifest: StoredManifest } | undefined> {
  let bytes: Buffer;
  try {
    bytes = await repository.store.get(forgottenKey(source, generation), FORGOTTEN_SIZE_MAX, signal);
  } catch (error) {
    if (hasCode(error, "E_NO_OBJECT")) return undefined;
    throw error;
  }
  const record = decodeForgotten(repository, source, generation, bytes);
  const stored = Buffer.from(record.manifest, "base64");
  return { record, stored, manifest: decodeManifest(repository, source, generation, stored) };
}

/** The bytes to store. @throws AppError E_RECORD (corrupt) for a record that its own schema refuses. */
export function encodeForgotten(repository: Repository, record: Forgotten): Buffer {
  return sealRecord(repository, FORGOTTEN, forgottenKey(record.source, record.generation), record);
}

/** The record in stored bytes, held against its place (R15). @throws AppError E_RECORD, E_SEAL, E_MISPLACED (corrupt). */
export function decodeForgotten(
  repository: Repository,
  source: string,
  generation: string,
  bytes: Uint8Array,
): Forgotten {
  return openRecord(repository, FORGOTTEN, forgottenKey(source, generation), bytes, { source, generation });
}
