import { AppError, hasCode } from "../errors.ts";
import { forwardError, type Forward } from "./forward.ts";
import type { Forwards } from "./forwards.ts";
import type { PackDirectory, PackRef } from "./pack-directory.ts";

/** Where the blob of a slot lies now: in a pack that is there. */
export interface Place {
  readonly directory: PackDirectory;
  readonly slot: number;
}

export interface RelocateTools {
  readonly forwards: Forwards;
  /** The directory out of a pack that is there. @throws AppError E_PACK_MISSING and others (corrupt). */
  readonly present: (ref: PackRef, signal: AbortSignal) => Promise<PackDirectory>;
}

/** Packs behind each other that were all rewritten. Prune leads forwards to their end, so that two are rare already. */
const CHAIN_MAX = 8;

/** A pack is gone and no forward leads to (all of) what is wanted of it. */
export function packMissing(pack: string, cause?: unknown): AppError {
  return new AppError("corrupt", "E_PACK_MISSING", `The pack ${pack} is gone`, { pack }, cause);
}

/**
 * The directory of a pack that is gone, out of any of its forwards (R10).
 * @throws AppError E_PACK_MISSING, and those of a damaged forward (corrupt).
 */
export async function directoryOfGone(
  ref: PackRef,
  forwards: Forwards,
  signal: AbortSignal,
): Promise<PackDirectory> {
  let problem: AppError | undefined;
  for await (const forward of forwardsOf(ref, forwards, signal)) {
    if (!(forward instanceof AppError)) return forward.directory;
    problem ??= problemIn(forward);
  }
  throw problem ?? packMissing(ref.pack);
}

/**
 * Finds the slots of a pack that is gone through its forwards, to packs that are there.
 *
 * The new packs are believed in nothing: what they say of a blob must be what the old directory says, which the layer
 * vouches for (R10). A forward that is damaged or leads nowhere is no failure as long as another covers its slots.
 *
 * @returns a place for every slot.
 * @throws AppError E_PACK_MISSING: some slot is in no forward; the first problem of a damaged one (corrupt).
 */
export async function relocate(
  ref: PackRef,
  slots: readonly number[],
  tools: RelocateTools,
  signal: AbortSignal,
  chain: readonly string[] = [],
): Promise<Map<number, Place>> {
  const found = new Map<number, Place>();
  let problem: AppError | undefined;
  for await (const forward of forwardsOf(ref, tools.forwards, signal)) {
    if (forward instanceof AppError) {
      problem ??= problemIn(forward);
      continue;
    }
    const open = slots.filter((slot) => !found.has(slot));
    const trouble = await follow(forward, open, found, tools, signal, [...chain, ref.pack]);
    problem ??= trouble;
    if (found.size === slots.length) return found;
  }
  throw problem ?? packMissing(ref.pack);
}

/** Those that are known, then those that have come since. */
async function* forwardsOf(
  ref: PackRef,
  forwards: Forwards,
  signal: AbortSignal,
): AsyncGenerator<Forward | AppError, void> {
  const known = await forwards.ids(ref.pack, signal);
  for (const id of known) yield await forwards.tryLoad(ref, id, signal);
  for (const id of await forwards.idsNow(ref.pack, signal)) {
    if (!known.includes(id)) yield await forwards.tryLoad(ref, id, signal);
  }
}

/** Enters what one forward knows of the slots. @returns what kept it from knowing all that it should. */
async function follow(
  forward: Forward,
  slots: readonly number[],
  found: Map<number, Place>,
  tools: RelocateTools,
  signal: AbortSignal,
  chain: readonly string[],
): Promise<AppError | undefined> {
  const byTarget = new Map<PackRef, { slot: number; to: number }[]>();
  for (const slot of slots) {
    const place = forward.ways.placeOf(slot);
    if (place === undefined) continue;
    const pairs = byTarget.get(place.target) ?? [];
    pairs.push({ slot, to: place.slot });
    byTarget.set(place.target, pairs);
  }
  let problem: AppError | undefined;
  for (const [target, pairs] of byTarget) {
    try {
      const wanted = [...new Set(pairs.map(({ to }) => to))];
      const places = await placesIn(target, wanted, tools, signal, chain);
      for (const { slot, to } of pairs) found.set(slot, agreed(forward.directory, slot, places.get(to)!));
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof AppError) || error.kind !== "corrupt") throw error;
      problem ??= error;
    }
  }
  return problem;
}

async function placesIn(
  target: PackRef,
  slots: readonly number[],
  tools: RelocateTools,
  signal: AbortSignal,
  chain: readonly string[],
): Promise<Map<number, Place>> {
  let directory: PackDirectory;
  try {
    directory = await tools.present(target, signal);
  } catch (error) {
    if (!hasCode(error, "E_PACK_MISSING")) throw error;
    if (chain.length === CHAIN_MAX || chain.includes(target.pack)) {
      throw forwardError(`chain of forwards of pack ${chain[0]!}`, "it does not come to an end");
    }
    return await relocate(target, slots, tools, signal, chain);
  }
  return new Map(slots.map((slot) => [slot, { directory, slot }]));
}

/** R10: the place, when it holds the very blob that the old directory describes. */
function agreed(old: PackDirectory, slot: number, place: Place): Place {
  if (old.sameBlob(slot, place.directory, place.slot)) return place;
  throw forwardError(
    `forward of pack ${old.pack}`,
    `slot ${slot} is not what lies in slot ${place.slot} of pack ${place.directory.pack}`,
  );
}

/** A forward that went since it was listed is none; its successor is found by the second look. */
function problemIn(error: AppError): AppError | undefined {
  return hasCode(error, "E_NO_OBJECT") ? undefined : error;
}
