import { isUtf8 } from "node:buffer";
import { open } from "node:fs/promises";
import { AppError, messageOf } from "../errors.ts";
import { runShell } from "../flow/shell.ts";
import type { PasswordSettings } from "../settings.ts";

/** Bytes of a password, its line end not counted. */
export const PASSWORD_SIZE_MAX = 1024;

const COMMAND_TIMEOUT_MS = 60_000;

/**
 * The password from where the settings say.
 *
 * @param environment that a command runs in.
 * @returns the caller's to overwrite.
 * @throws AppError (credentials) E_PASSWORD_FILE, E_PASSWORD_COMMAND (it failed, or took longer than 60 s),
 *   E_PASSWORD_FORM.
 */
export async function fetchPassword(
  { how, variable, value }: PasswordSettings,
  environment: Readonly<Record<string, string | undefined>>,
  signal: AbortSignal,
): Promise<Buffer> {
  if (how === "text") return checkedPassword(Buffer.from(value, "utf8"), variable);
  // two more bytes for a line end, one more to see that it is too long
  const limit = PASSWORD_SIZE_MAX + 3;
  const bytes = await (how === "file"
    ? readStart(value, variable, limit)
    : commandOutput(value, variable, environment, limit, signal));
  return checkedPassword(withoutLineEnd(bytes), variable);
}

/** What a command line prints, up to `limit` bytes; the rest is not read. */
async function commandOutput(
  line: string,
  variable: string,
  environment: Readonly<Record<string, string | undefined>>,
  limit: number,
  signal: AbortSignal,
): Promise<Buffer> {
  const command = { line, environment, timeoutMs: COMMAND_TIMEOUT_MS, outputMax: limit };
  const { output, failure, cause } = await runShell(command, signal);
  if (failure === undefined) return output;
  const message = `The command of ${variable} ${failure}`;
  throw new AppError("credentials", "E_PASSWORD_COMMAND", message, {}, cause);
}

async function readStart(path: string, variable: string, limit: number): Promise<Buffer> {
  try {
    const file = await open(path);
    try {
      const buffer = Buffer.alloc(limit);
      let length = 0;
      for (;;) {
        const { bytesRead } = await file.read(buffer, length, limit - length, null);
        length += bytesRead;
        if (bytesRead === 0 || length === limit) return buffer.subarray(0, length);
      }
    } finally {
      await file.close();
    }
  } catch (error) {
    const message = `${variable}: the file ${path} cannot be read: ${messageOf(error)}`;
    throw new AppError("credentials", "E_PASSWORD_FILE", message, {}, error);
  }
}

/** Files and commands end a line; one line end is no part of the password. */
function withoutLineEnd(bytes: Buffer): Buffer {
  if (bytes.at(-1) !== 0x0a) return bytes;
  return bytes.subarray(0, bytes.at(-2) === 0x0d ? -2 : -1);
}

/** @throws AppError E_PASSWORD_FORM (credentials); the bytes are overwritten then. */
export function checkedPassword(bytes: Buffer, origin: string): Buffer {
  const why = formProblem(bytes);
  if (why === undefined) return bytes;
  bytes.fill(0);
  throw new AppError("credentials", "E_PASSWORD_FORM", `No password can be taken from ${origin}: ${why}`);
}

function formProblem(bytes: Buffer): string | undefined {
  if (bytes.length === 0) return "it is empty";
  if (bytes.length > PASSWORD_SIZE_MAX) return `it is longer than ${PASSWORD_SIZE_MAX} bytes`;
  if (bytes.some((byte) => byte < 0x20 || byte === 0x7f))
    return "it has more than one line, or control characters";
  // what the environment brings that is no UTF-8, Node turns into U+FFFD: many passwords would be one
  if (!isUtf8(bytes) || bytes.includes("\ufffd")) return "it is not UTF-8 text";
  return undefined;
}
