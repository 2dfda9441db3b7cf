import { isUtf8 } from "node:buffer";
import { open } from "node:fs/promises";
import { AppError, messageOf } from "../errors.ts";
import type { Password } from "../repository/key-slots.ts";
import { newPasswordSettings, passwordSettings, type PasswordSettings } from "../settings.ts";
import { commandOutput } from "./password-command.ts";
import { askOnTerminal, hasTerminal } from "./terminal.ts";

/** Bytes of a password, its line end not counted. */
export const PASSWORD_SIZE_MAX = 1024;

/** The password of the repository as the environment gives it, or as somebody types it when it is needed. */
export function repositoryPassword(): Password {
  const settings = passwordSettings(process.env);
  forgetText("BLOCKHAUL_PASSWORD");
  if (settings !== undefined) {
    return { given: true, origin: settings.variable, read: (signal) => fetchPassword(settings, signal) };
  }
  const origin = "what you typed";
  const ask = (signal: AbortSignal): Promise<Buffer> => typed("Password of the repository: ", signal, origin);
  return { given: false, origin, read: async (signal) => (hasTerminal() ? await ask(signal) : undefined) };
}

/** The first password of a repository that is made; typed twice. @throws AppError E_PASSWORD_NEEDED (credentials). */
export async function firstPassword(signal: AbortSignal): Promise<Buffer> {
  const settings = passwordSettings(process.env);
  forgetText("BLOCKHAUL_PASSWORD");
  return await chosenPassword(settings, "BLOCKHAUL_PASSWORD", "Password of the new repository: ", signal);
}

/** What `key add` and `key passwd` set; typed twice. @throws AppError E_PASSWORD_NEEDED (credentials). */
export async function newPassword(signal: AbortSignal): Promise<Buffer> {
  const settings = newPasswordSettings(process.env);
  forgetText("BLOCKHAUL_NEW_PASSWORD");
  return await chosenPassword(settings, "BLOCKHAUL_NEW_PASSWORD", "New password: ", signal);
}

/** Programs that are started from now on need not have it. */
function forgetText(variable: string): void {
  // eslint-disable-next-line @typescript-eslint/no-dynamic-delete -- the only way to take something out of it
  delete process.env[variable];
}

async function chosenPassword(
  settings: PasswordSettings | undefined,
  variable: string,
  question: string,
  signal: AbortSignal,
): Promise<Buffer> {
  if (settings !== undefined) return await fetchPassword(settings, signal);
  if (!hasTerminal()) {
    throw new AppError(
      "credentials",
      "E_PASSWORD_NEEDED",
      `A password is needed and there is no terminal to ask on; set ${variable}_FILE, ${variable}_COMMAND or ${variable}`,
    );
  }
  const first = await typed(question, signal, "what you typed");
  const second = await askOnTerminal("Once more: ", PASSWORD_SIZE_MAX, signal);
  const same = first.equals(second);
  second.fill(0);
  if (same) return first;
  first.fill(0);
  throw new AppError("credentials", "E_PASSWORD_DIFFERS", "The two passwords differ; nothing was changed");
}

async function typed(question: string, signal: AbortSignal, origin: string): Promise<Buffer> {
  return checked(await askOnTerminal(question, PASSWORD_SIZE_MAX, signal), origin);
}

/** @throws AppError (credentials) E_PASSWORD_FILE, E_PASSWORD_COMMAND, E_PASSWORD_FORM. */
async function fetchPassword(settings: PasswordSettings, signal: AbortSignal): Promise<Buffer> {
  const { how, variable, value } = settings;
  if (how === "text") return checked(Buffer.from(value, "utf8"), variable);
  // two more bytes for a line end, one more to see that it is too long
  const limit = PASSWORD_SIZE_MAX + 3;
  const bytes = await (how === "file"
    ? readStart(value, variable, limit)
    : commandOutput(variable, limit, signal));
  return checked(withoutLineEnd(bytes), variable);
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
function checked(bytes: Buffer, origin: string): Buffer {
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
