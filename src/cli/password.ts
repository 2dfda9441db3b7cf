import { AppError } from "../errors.ts";
import type { Password } from "../repository/key-slots.ts";
import { checkedPassword, fetchPassword, PASSWORD_SIZE_MAX } from "../session/password.ts";
import { newPasswordSettings, passwordSettings, type PasswordSettings } from "../settings.ts";
import { askOnTerminal, hasTerminal } from "./terminal.ts";

/** The password of the repository as the environment gives it, or as somebody types it when it is needed. */
export function repositoryPassword(): Password {
  const settings = passwordSettings(process.env);
  forgetText("BLOCKHAUL_PASSWORD");
  if (settings !== undefined) {
    return {
      given: true,
      origin: settings.variable,
      read: (signal) => fetchPassword(settings, process.env, signal),
    };
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
  if (settings !== undefined) return await fetchPassword(settings, process.env, signal);
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
  return checkedPassword(await askOnTerminal(question, PASSWORD_SIZE_MAX, signal), origin);
}
