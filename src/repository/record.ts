import { hash } from "node:crypto";
import { z } from "zod";
import { AppError } from "../errors.ts";

/**
 * A record is a stored JSON document that carries its own checksum (FORMAT.md, "Records"):
 *
 *     {"format":1, …,"sha256":"<64 hex digits>"}\n
 *
 * `sha256` stands last and is the SHA-256 of the same text without it: `{"format":1, …}`. So a record is JSON for
 * every tool, and yet no bit of it can change unnoticed, also in a repository without encryption.
 */
const TAIL_FORM = /^,"sha256":"([0-9a-f]{64})"\}\n$/;
const TAIL_SIZE = `,"sha256":"${"0".repeat(64)}"}\n`.length;

/** The stored form of a document. @param document a JSON object with at least one field, none named "sha256". */
export function encodeRecord(document: Readonly<Record<string, unknown>>): Buffer {
  const text = JSON.stringify(document);
  return Buffer.from(`${text.slice(0, -1)},"sha256":"${hash("sha256", text)}"}\n`, "utf8");
}

/**
 * The document in a record, its checksum checked, its fields not.
 *
 * @param what names the record in errors: "manifest generations/web/0190….json".
 * @throws AppError E_RECORD (corrupt).
 */
export function decodeRecord(bytes: Uint8Array, what: string): Readonly<Record<string, unknown>> {
  const text = decodeText(bytes, what);
  const tail = TAIL_FORM.exec(text.slice(-TAIL_SIZE));
  if (tail === null) throw recordError(what, "it does not end in its checksum");
  const body = `${text.slice(0, -TAIL_SIZE)}}`;
  if (hash("sha256", body) !== tail[1]) throw recordError(what, "its checksum does not match");
  const document: unknown = parseJson(body, what);
  if (document === null || typeof document !== "object" || Array.isArray(document)) {
    throw recordError(what, "it is not a JSON object");
  }
  return document as Readonly<Record<string, unknown>>;
}

/**
 * The document in a record, checked by its schema too.
 * @throws AppError E_RECORD (corrupt): damaged, or of a form that this version does not write.
 */
export function parseRecord<T>(schema: z.ZodType<T>, bytes: Uint8Array, what: string): T {
  return checkRecord(schema, decodeRecord(bytes, what), what);
}

/** @throws AppError E_RECORD (corrupt). */
export function checkRecord<T>(schema: z.ZodType<T>, document: unknown, what: string): T {
  const checked = schema.safeParse(document);
  if (checked.success) return checked.data;
  const issue = checked.error.issues[0]!;
  throw recordError(what, `${["document", ...issue.path].join(".")}: ${issue.message}`);
}

function decodeText(bytes: Uint8Array, what: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Buffer.from(bytes));
  } catch (error) {
    throw recordError(what, "it is not UTF-8", error);
  }
}

function parseJson(text: string, what: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw recordError(what, "it is not JSON", error);
  }
}

function recordError(what: string, why: string, cause?: unknown): AppError {
  return new AppError("corrupt", "E_RECORD", `The ${what} is damaged: ${why}`, { what }, cause);
}
