import { AppError } from "../errors.ts";

const SECOND_MS = 1000;

const UNITS: Readonly<Record<string, number>> = {
  s: SECOND_MS,
  min: 60 * SECOND_MS,
  h: 3600 * SECOND_MS,
  d: 24 * 3600 * SECOND_MS,
  w: 7 * 24 * 3600 * SECOND_MS,
};

/** Nobody means more than ten years. */
const SPAN_MAX_MS = 3650 * 24 * 3600 * SECOND_MS;

/**
 * A length of time that no calendar stretches: "90s", "10min", "26h", "1d", "2w". "m" is refused, because it is a month to
 * retention rules.
 *
 * @returns milliseconds, above 0.
 * @throws AppError E_SPAN (usage).
 */
export function parseSpan(text: string): number {
  const match = /^(\d{1,9})(s|min|h|d|w)$/.exec(text);
  const ms = match === null ? 0 : Number(match[1]) * UNITS[match[2]!]!;
  if (ms > 0 && ms <= SPAN_MAX_MS) return ms;
  const message = `Not a length of time: "${text}"; write 90s, 10min, 26h, 1d or 2w, at most 3650d`;
  throw new AppError("usage", "E_SPAN", message);
}
