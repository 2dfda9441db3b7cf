import { messageOf } from "../errors.ts";
import { pause } from "../flow/retry.ts";
import type { Repository } from "../repository/config.ts";
import type { StoredManifest } from "../repository/manifest.ts";
import { RUN_GRACE_MS } from "../repository/pins.ts";
import { beginPin, type Pin, type PinOptions } from "../restore/pin.ts";

export interface StandingPinOptions extends PinOptions {
  /** Told when the pin could not be renewed; it is tried again. */
  readonly warn: (message: string) => void;
  /** Milliseconds between renewals; less than a pin lasts. */
  readonly renewMs?: number;
}

/** A renewal may fail twice before the pin runs out. */
const RENEW_MS = RUN_GRACE_MS / 3;

/**
 * Does work that may read a generation for months, pinned all the time: a record counts for a day, so another one takes
 * its place before.
 *
 * @throws what `work` throws, and what `beginPin` throws at the beginning.
 */
export async function withStandingPin<T>(
  repository: Repository,
  manifest: StoredManifest,
  options: StandingPinOptions,
  signal: AbortSignal,
  work: () => Promise<T>,
): Promise<T> {
  const first = await beginPin(repository, manifest, options, signal);
  if (first === undefined) return await work();
  const over = new AbortController();
  const last = keepRenewed(first, repository, manifest, options, over.signal);
  let failure: unknown;
  try {
    return await work();
  } catch (error) {
    failure = error;
    throw error;
  } finally {
    over.abort();
    await (await last).end(failure).catch(() => undefined); // a record without an end only pins for a while longer
  }
}

/** @returns the pin that stands when it is all over. Never rejects. */
async function keepRenewed(
  first: Pin,
  repository: Repository,
  manifest: StoredManifest,
  options: StandingPinOptions,
  over: AbortSignal,
): Promise<Pin> {
  let pin = first;
  for (;;) {
    try {
      await pause(options.renewMs ?? RENEW_MS, over);
      const next = await beginPin(repository, manifest, options, over);
      if (next === undefined) continue;
      await pin.end(undefined).catch(() => undefined);
      pin = next;
    } catch (error) {
      if (over.aborted) return pin;
      options.warn(`The generation's pin could not be renewed, will try again: ${messageOf(error)}`);
    }
  }
}
