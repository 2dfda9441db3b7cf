import { AppError, type ErrorContext } from "../errors.ts";
import { STRING_MAX } from "./constants.ts";

/** Big-endian pieces that the codecs in `messages.ts` and `options.ts` share. */

/** A peer that breaks the protocol. The session cannot go on, and a new one would meet the same peer. */
export function protocolError(message: string, context: ErrorContext = {}): AppError {
  return new AppError("source", "E_NBD_PROTOCOL", message, context);
}

/** A Buffer on the same memory. */
export function bufferOf(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** @throws AppError E_NBD_PROTOCOL unless the message has exactly this length. */
export function expectLength(bytes: Uint8Array, length: number, what: string): void {
  if (bytes.length === length) return;
  throw protocolError(`NBD peer sent ${what} of ${bytes.length} bytes instead of ${length}`);
}

/**
 * A u64 as a number. Past 2^53 it is not exact, yet still past every size a disk can have here, so that a check
 * against a bound that follows stays right; use `readExactU64` where no bound follows.
 */
export function readU64(bytes: Buffer, at: number): number {
  return bytes.readUInt32BE(at) * 0x1_0000_0000 + bytes.readUInt32BE(at + 4);
}

/** A u64 up to 2^53-1 (8 PiB). @throws AppError E_NBD_PROTOCOL for more. */
export function readExactU64(bytes: Buffer, at: number, what: string): number {
  const value = readU64(bytes, at);
  if (Number.isSafeInteger(value)) return value;
  throw protocolError(`NBD peer announced ${what} past 8 PiB, which is more than this program can address`);
}

/** @param value a safe integer, 0 or more. */
export function writeU64(bytes: Buffer, value: number, at: number): void {
  bytes.writeUInt32BE(Math.floor(value / 0x1_0000_0000), at);
  bytes.writeUInt32BE(value % 0x1_0000_0000, at + 4);
}

const UTF8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/**
 * A string as proto.md's "Conventions" allow it: UTF-8, no NUL, at most 4096 bytes.
 *
 * @throws AppError E_NBD_PROTOCOL for anything else.
 */
export function decodeString(bytes: Uint8Array, what: string): string {
  if (bytes.length > STRING_MAX) {
    throw protocolError(`NBD peer sent ${what} of ${bytes.length} bytes; the protocol allows ${STRING_MAX}`);
  }
  if (bytes.includes(0)) throw protocolError(`NBD peer sent ${what} with a NUL character`);
  try {
    return UTF8.decode(bytes);
  } catch (error) {
    throw new AppError("source", "E_NBD_PROTOCOL", `NBD peer sent ${what} that is not UTF-8`, {}, error);
  }
}

/** @throws AppError E_NBD_STRING (usage): a peer would have to refuse it. */
export function encodeString(text: string, what: string): Buffer {
  const bytes = Buffer.from(text, "utf8");
  if (bytes.length <= STRING_MAX && !bytes.includes(0)) return bytes;
  throw new AppError(
    "usage",
    "E_NBD_STRING",
    `The ${what} must have at most ${STRING_MAX} bytes and no NUL character; it has ${bytes.length} bytes`,
  );
}

/** A peer's text for people, on one line, without control characters that a terminal would obey. */
export function displayText(bytes: Uint8Array): string {
  const text = bufferOf(bytes).toString("utf8", 0, STRING_MAX);
  return text.replaceAll(/[\p{Cc}\p{Cf}\s]+/gu, " ").trim();
}
