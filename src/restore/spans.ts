import { KiB, MiB } from "../bytes/size.ts";
import { AppError } from "../errors.ts";
import type { PackDirectory } from "../repository/pack-directory.ts";
import type { PackPart } from "./plan.ts";

/** One blob to be opened, and the chunks of the disk that are made of it. */
export interface WantedBlob {
  readonly slot: number;
  readonly chunks: readonly number[];
}

/** Where the slots of a pack lie, and how long they are. */
export type SlotPlaces = Pick<PackDirectory, "slotCount" | "offsetOf" | "storedLength" | "rawLength">;

/** A stretch of a pack that one ranged GET fetches. */
export interface Span<Directory extends SlotPlaces = PackDirectory> {
  readonly pack: string;
  readonly directory: Directory;
  /** Where in the object, in bytes. */
  readonly offset: number;
  readonly length: number;
  readonly blobs: readonly WantedBlob[];
}

export interface SpanLimits {
  /** Most bytes of one GET; at least the largest blob. */
  readonly storedMax: number;
  /** Most raw bytes of the blobs of one GET; at least the largest chunk. */
  readonly rawMax: number;
  /** Unwanted bytes that are read rather than paid for by another request. */
  readonly gapMax: number;
}

/** What every reader of packs keeps to: a GET of 4 MiB, which holds the largest blob. */
export const SPAN_LIMITS: SpanLimits = { storedMax: 4 * MiB + 64 * KiB, rawMax: 4 * MiB, gapMax: 128 * KiB };

/** Ranged GETs under way at once, each with a slab of stored and one of raw bytes. */
export const GETS = 6;

/**
 * Groups the wanted slots of a pack into few ranged GETs.
 *
 * @throws AppError E_SLOT (corrupt) when the layer names a slot that the pack does not have.
 */
export function* spans<Directory extends SlotPlaces>(
  part: PackPart,
  directory: Directory,
  limits: SpanLimits,
): Generator<Span<Directory>, void> {
  const { pack } = part.packRef;
  let blobs: WantedBlob[] = [];
  let start = 0;
  let end = 0;
  let raw = 0;
  for (const wanted of wantedBlobs(part)) {
    if (wanted.slot >= directory.slotCount) {
      throw new AppError(
        "corrupt",
        "E_SLOT",
        `Pack ${pack} has no slot ${wanted.slot}, which a layer points at`,
      );
    }
    const offset = directory.offsetOf(wanted.slot);
    const next = offset + directory.storedLength(wanted.slot);
    const rawLength = directory.rawLength(wanted.slot);
    const fits =
      offset - end <= limits.gapMax && next - start <= limits.storedMax && raw + rawLength <= limits.rawMax;
    if (blobs.length > 0 && !fits) {
      yield { pack, directory, offset: start, length: end - start, blobs };
      blobs = [];
    }
    if (blobs.length === 0) {
      start = offset;
      raw = 0;
    }
    blobs.push(wanted);
    end = next;
    raw += rawLength;
  }
  if (blobs.length > 0) yield { pack, directory, offset: start, length: end - start, blobs };
}

/** Slot by slot; a slot that several chunks share comes once. */
function* wantedBlobs(part: PackPart): Generator<WantedBlob, void> {
  let index = 0;
  while (index < part.slots.length) {
    const slot = part.slots[index]!;
    const chunks: number[] = [];
    for (; part.slots[index] === slot; index++) chunks.push(part.chunks[index]!);
    yield { slot, chunks };
  }
}
