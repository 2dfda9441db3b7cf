import { AppError } from "../errors.ts";
import { uuidTime } from "./names.ts";

/** A local clock may be off by this much, milliseconds (R22): S3 refuses requests signed further off. */
const SKEW_MAX_MS = 15 * 60_000;

/**
 * Refuses a local clock that is off (R22): what it dates would mislead people and retention.
 *
 * @param storeNow the store's clock, read at the moment of `localNow`.
 * @returns how far the local clock is ahead, milliseconds.
 * @throws AppError E_CLOCK_OFF (usage) with the offset.
 */
export function checkClock(storeNow: Date, localNow: Date): number {
  const offsetMs = localNow.getTime() - storeNow.getTime();
  if (Math.abs(offsetMs) <= SKEW_MAX_MS) return offsetMs;
  const minutes = (Math.abs(offsetMs) / 60_000).toFixed(0);
  throw new AppError(
    "usage",
    "E_CLOCK_OFF",
    `The clock of this machine is ${minutes} minutes ${offsetMs > 0 ? "ahead of" : "behind"} the store's; set it right`,
    { offsetMs },
  );
}

/**
 * The time for a new generation's id (R22): the store's, but always later than any generation before, so that
 * ids of a source sort in the order in which they were made, whatever the store's clock does.
 *
 * @param storeNow the store's clock when the disks stood still.
 * @param newest the source's newest generation, and the parent where that is another.
 * @returns milliseconds since 1970, for `uuidv7`.
 * @throws AppError E_STORE_CLOCK (usage) when that would be more than 15 minutes ahead of the store's clock.
 */
export function nextGenerationTime(storeNow: Date, newest: readonly string[]): number {
  const earliest = newest.map((id) => (uuidTime(id) ?? 0) + 1);
  const time = Math.max(storeNow.getTime(), ...earliest);
  if (time - storeNow.getTime() <= SKEW_MAX_MS) return time;
  throw new AppError(
    "usage",
    "E_STORE_CLOCK",
    `The store's clock says ${storeNow.toISOString()}, but a generation is dated ${new Date(time).toISOString()}; set it right`,
    { aheadMs: time - storeNow.getTime() },
  );
}
