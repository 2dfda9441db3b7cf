import { AppError, hasCode, messageOf } from "../../errors.ts";
import type { Guard } from "./guard.ts";

/** How the guest is to stand at the instant. */
export interface FreezeWish {
  /** `auto`: frozen if an agent answers, else crash consistent. `require`: frozen, or no backup. */
  readonly freeze: "auto" | "require" | "off";
  /** The longest that the guest may stand frozen, in milliseconds. */
  readonly freezeBudgetMs: number;
  warn(message: string): void;
}

/**
 * @returns whether the guest stands frozen.
 * @throws AppError as `Guard.freeze`, when it is required or the guest may be frozen; the signal's reason.
 */
export async function freezeGuest(
  guard: Pick<Guard, "freeze">,
  { freeze, warn }: FreezeWish,
  signal: AbortSignal,
): Promise<boolean> {
  if (freeze === "off") return false;
  try {
    await guard.freeze(signal);
    return true;
  } catch (error) {
    signal.throwIfAborted();
    if (freeze === "require" || hasCode(error, "E_FROZEN")) throw error;
    warn(`The guest was not frozen, so the backup is crash consistent: ${messageOf(error)}`);
    return false;
  }
}

/**
 * How the guest's file systems stood.
 *
 * @param frozen as `freezeGuest` said. @param overrun it was thawed before the point in time was made.
 * @throws AppError E_FREEZE_OVERRUN (source) when they had to be frozen.
 */
export function consistencyOf(
  frozen: boolean,
  overrun: boolean,
  { freeze, freezeBudgetMs, warn }: FreezeWish,
): "filesystem" | "crash" {
  if (!frozen) return "crash";
  if (!overrun) return "filesystem";
  const what = `The guest was thawed before the point in time was made: it took longer than ${freezeBudgetMs} ms`;
  if (freeze === "require") throw new AppError("source", "E_FREEZE_OVERRUN", what, { freezeBudgetMs });
  warn(`${what}, so the backup is crash consistent`);
  return "crash";
}
