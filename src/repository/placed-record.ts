import type { z } from "zod";
import { AppError } from "../errors.ts";
import type { Repository } from "./config.ts";
import { encodeRecord, parseRecord } from "./record.ts";
import type { SealedType } from "./sealing.ts";

/** A kind of sealed record that says which place it belongs to. */
export interface RecordKind<T> {
  readonly type: SealedType;
  /** For errors, before the key: "hold". */
  readonly noun: string;
  readonly schema: z.ZodType<T>;
}

/** The bytes to store. @throws AppError E_RECORD (corrupt): what would not be read back must not be written. */
export function sealRecord<T extends Readonly<Record<string, unknown>>>(
  { sealer }: Repository,
  { type, noun, schema }: RecordKind<T>,
  key: string,
  record: T,
): Buffer {
  const plain = encodeRecord(record);
  parseRecord(schema, plain, `${noun} ${key}`);
  return sealer.sealObject(type, key, plain);
}

/**
 * The record in stored bytes, held against its place (R15).
 *
 * @param place what the key says, besides the repository.
 * @throws AppError E_RECORD, E_SEAL, E_MISPLACED (corrupt).
 */
export function openRecord<T extends { readonly repository: string }>(
  { sealer, config }: Repository,
  { type, noun, schema }: RecordKind<T>,
  key: string,
  stored: Uint8Array,
  place: Readonly<Partial<T>>,
): T {
  const record = parseRecord(schema, sealer.openObject(type, key, stored), `${noun} ${key}`);
  const fields = Object.keys(place) as (keyof T)[];
  const isHere =
    record.repository === config.repository && fields.every((field) => record[field] === place[field]);
  if (isHere) return record;
  throw new AppError("corrupt", "E_MISPLACED", `The ${noun} ${key} belongs elsewhere and was put there`, {
    key,
  });
}
