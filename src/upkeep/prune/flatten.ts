import { MiB } from "../../bytes/size.ts";
import { AppError } from "../../errors.ts";
import type { Repository } from "../../repository/config.ts";
import type { Forward, Move } from "../../repository/forward.ts";
import { Forwards } from "../../repository/forwards.ts";
import type { PackRef } from "../../repository/pack-directory.ts";
import { PackDirectories } from "../../repository/pack-reader.ts";
import type { Forwarding } from "./forwarding.ts";
import type { PackMarks } from "./pack-marks.ts";
import { storeForward } from "./rewrite.ts";
import { slotsWithout } from "./slot-bits.ts";

/** Directories of new packs, of which few are looked into at a time. */
const CACHE_BYTES = 16 * MiB;

/**
 * Where a forward leads to a pack that was rewritten itself, writes one that leads straight to where the slots are now; the
 * old one adds nothing then. So chains do not grow with each prune.
 *
 * @param forwarding fresh: it knows the forwards of what was rewritten.
 * @returns how many forwards were written.
 * @throws errors of the store. What is damaged is left as it is.
 */
export async function flattenForwards(
  repository: Repository,
  marks: PackMarks,
  forwarding: Forwarding,
  signal: AbortSignal,
): Promise<number> {
  const reader = new Forwards(repository);
  const directories = new PackDirectories(repository, { cacheBytes: CACHE_BYTES });
  let written = 0;
  for (const pack of [...forwarding.packs()]) {
    if (!forwarding.isRoundabout(pack)) continue;
    try {
      if (await flatten(repository, marks, forwarding, { pack, reader, directories }, signal)) written++;
    } catch (error) {
      if (!(error instanceof AppError) || error.kind !== "corrupt") throw error;
    }
  }
  return written;
}

async function flatten(
  repository: Repository,
  marks: PackMarks,
  forwarding: Forwarding,
  from: { readonly pack: string; readonly reader: Forwards; readonly directories: PackDirectories },
  signal: AbortSignal,
): Promise<boolean> {
  const { packRef, bits } = marks.get(from.pack)!;
  const old = await anyForward(from.reader, packRef, signal);
  if (old === undefined) return false;
  const moves: Move[] = [];
  for (const slot of slotsWithout(bits, undefined)) {
    const place = forwarding.placeOf(from.pack, slot);
    if (place === undefined) continue;
    const there = await from.directories.get(place.target, signal);
    if (!old.directory.sameBlob(slot, there, place.slot)) continue;
    moves.push({ slot, target: place.target, to: place.slot });
  }
  if (moves.length === 0) return false;
  await storeForward(repository, old, moves, signal);
  return true;
}

/** One that can be read: all of them hold the old pack's directory. */
async function anyForward(
  reader: Forwards,
  packRef: PackRef,
  signal: AbortSignal,
): Promise<Forward | undefined> {
  for (const id of await reader.ids(packRef.pack, signal)) {
    const forward = await reader.tryLoad(packRef, id, signal);
    if (!(forward instanceof AppError)) return forward;
  }
  return undefined;
}
