import { hasCode } from "../errors.ts";
import { packKey } from "../repository/names.ts";
import type { Place } from "../repository/pack-reader.ts";
import type { ReadTools } from "../repository/read-tools.ts";
import { packMissing } from "../repository/relocate.ts";
import type { Span } from "./spans.ts";

/** A blob as stored, among the bytes that were fetched, and where these came from. */
export interface FetchedBlob {
  readonly offset: number;
  readonly pack: string;
  readonly slot: number;
}

/** Where a blob is to be fetched from: its bytes in a pack's object go to `into` in the slab. */
interface Piece {
  readonly pack: string;
  readonly offset: number;
  readonly into: number;
  length: number;
}

/** Packs that may be missed one after the other while a span is fetched, each leading to the next. */
const MISSES_MAX = 16;

/**
 * Fetches the stored bytes of a span's blobs: with one GET, or when their pack is gone, from the packs to which it was
 * rewritten; also when it goes in this moment.
 *
 * @param into has room for the whole span, which is never less than its blobs.
 * @returns one for each blob of the span.
 * @throws AppError E_PACK_MISSING, E_FORWARD and their like (corrupt); errors of the store.
 */
export async function fetchSpan(
  span: Span,
  into: Buffer,
  tools: Pick<ReadTools, "repository" | "directories">,
  signal: AbortSignal,
): Promise<FetchedBlob[]> {
  const { pack, directory, offset, length } = span;
  const { directories } = tools;
  if (!directories.isGone(pack) && (await fetched({ pack, offset, into: 0, length }, into, tools, signal))) {
    return span.blobs.map(({ slot }) => ({ offset: directory.offsetOf(slot) - offset, pack, slot }));
  }
  const slots = span.blobs.map(({ slot }) => slot);
  for (let miss = 0; miss < MISSES_MAX; miss++) {
    const places = await directories.places(directory.ref, slots, signal);
    const { pieces, blobs } = collect(slots.map((slot) => places.get(slot)!));
    if (await allFetched(pieces, into, tools, signal)) return blobs;
  }
  throw packMissing(pack);
}

/** Blobs that touch in their new pack come with one GET; in the slab they lie back to back. */
function collect(places: readonly Place[]): { pieces: Piece[]; blobs: FetchedBlob[] } {
  const pieces: Piece[] = [];
  const blobs: FetchedBlob[] = [];
  let at = 0;
  for (const { directory, slot } of places) {
    const { pack } = directory;
    const offset = directory.offsetOf(slot);
    const length = directory.storedLength(slot);
    const last = pieces.at(-1);
    if (last?.pack === pack && last.offset + last.length === offset) last.length += length;
    else pieces.push({ pack, offset, into: at, length });
    blobs.push({ offset: at, pack, slot });
    at += length;
  }
  return { pieces, blobs };
}

async function allFetched(
  pieces: readonly Piece[],
  into: Buffer,
  tools: Pick<ReadTools, "repository" | "directories">,
  signal: AbortSignal,
): Promise<boolean> {
  for (const piece of pieces) if (!(await fetched(piece, into, tools, signal))) return false;
  return true;
}

/** @returns false when the pack is gone, which everybody is told. */
async function fetched(
  { pack, offset, into, length }: Piece,
  slab: Buffer,
  { repository, directories }: Pick<ReadTools, "repository" | "directories">,
  signal: AbortSignal,
): Promise<boolean> {
  try {
    await repository.store.getRange(packKey(pack), offset, slab.subarray(into, into + length), signal);
    return true;
  } catch (error) {
    if (!hasCode(error, "E_NO_OBJECT")) throw error;
    directories.noteGone(pack);
    return false;
  }
}
