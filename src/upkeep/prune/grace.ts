import { AppError } from "../../errors.ts";

const HOUR_MS = 3_600_000;

/** How long a prune leaves everything alone unless told otherwise, milliseconds. */
export const DEFAULT_GRACE_MS = 24 * HOUR_MS;

/** The least a person may ask for: above the hour in which a `forget` may put a manifest back (R24). */
const GRACE_MIN_MS = 2 * HOUR_MS;

/** Nobody means more than ten years. */
const GRACE_MAX_MS = 3650 * 24 * HOUR_MS;

const UNITS: Readonly<Record<string, number>> = { h: HOUR_MS, d: 24 * HOUR_MS, w: 7 * 24 * HOUR_MS };

/**
 * A grace as people write it: `24h`, `3d`, `2w`.
 * @returns milliseconds.
 * @throws AppError E_GRACE (usage): of another form, below 2 hours, or beyond reason.
 */
export function parseGrace(text: string): number {
  const match = /^(\d{1,6})([hdw])$/.exec(text);
  if (match === null) throw new AppError("usage", "E_GRACE", `Not a grace: "${text}"; write 24h, 3d or 2w`);
  const ms = Number(match[1]) * UNITS[match[2]!]!;
  if (ms >= GRACE_MIN_MS && ms <= GRACE_MAX_MS) return ms;
  const why =
    ms < GRACE_MIN_MS
      ? "below 2h a generation that a forget puts back might be lost; ask for 2h or more"
      : "ask for 3650d or less";
  throw new AppError("usage", "E_GRACE", `A grace of ${text} cannot be: ${why}`);
}
