import type { Range } from "../../disk/disk.ts";
import { endOf, mergeArriving, overlap, sameDirt, sameState } from "../../disk/extents.ts";
import { AppError } from "../../errors.ts";
import { AllocationFlag, DIRTY_FLAG } from "../constants.ts";
import type { BlockStatus } from "../messages.ts";
import type { SelectedContext } from "./meta-contexts.ts";
import type { ReadPart } from "./replies.ts";
import type { LentBytes, ServedDisk } from "./served-disk.ts";
import type { SpareBuffers } from "./spare-buffers.ts";

/** A read whose range is in more pieces than this is answered as data throughout: holes would cost more. */
const PARTS_MAX = 64;

/**
 * Reads a range.
 *
 * @param whole one piece of data, zeros included, because the client cannot take fragments or holes.
 * @param spare where buffers come from. Those of a read that failed may still be in use and are lost.
 * @returns pieces in order that cover the range, none for an empty one; to be released when the answer is out.
 */
export async function readParts(
  disk: ServedDisk,
  range: Range,
  whole: boolean,
  spare: SpareBuffers,
  signal: AbortSignal,
): Promise<{ readonly parts: readonly ReadPart[]; release(): void }> {
  if (range.length === 0) return { parts: [], release: () => undefined };
  const lent = await disk.lend?.(range.offset, range.length, signal);
  if (lent !== undefined) return { parts: partsOf(lent, range, whole), release: () => lent.release() };
  const plan = whole ? [range] : await dataAndHoles(disk, range, signal);
  const taken: Buffer[] = [];
  const reads = plan.map(async ({ offset, length, zero }: PlannedPart): Promise<ReadPart> => {
    if (zero === true) return { offset, length };
    const bytes = spare.take(length);
    await disk.read(offset, bytes, signal);
    taken.push(bytes);
    return { offset, length, bytes: [bytes] };
  });
  const release = (): void => {
    for (const bytes of taken) spare.give(bytes);
  };
  try {
    return { parts: await Promise.all(reads), release };
  } catch (error) {
    await Promise.allSettled(reads); // what comes now is to be given back too
    release();
    throw error;
  }
}

/** Neighbours of one kind together. */
function partsOf({ pieces }: Pick<LentBytes, "pieces">, range: Range, whole: boolean): ReadPart[] {
  const parts: { offset: number; length: number; bytes?: Uint8Array[] }[] = [];
  let at = range.offset;
  for (const { bytes, zero } of pieces) {
    const hole = zero && !whole;
    let last = parts.at(-1);
    if (last === undefined || hole !== (last.bytes === undefined)) {
      last = { offset: at, length: 0, ...(!hole && { bytes: [] }) };
      parts.push(last);
    }
    last.length += bytes.length;
    last.bytes?.push(bytes);
    at += bytes.length;
  }
  return parts.length > PARTS_MAX ? partsOf({ pieces }, range, true) : parts;
}

interface PlannedPart extends Range {
  readonly zero?: boolean;
}

async function dataAndHoles(disk: ServedDisk, range: Range, signal: AbortSignal): Promise<PlannedPart[]> {
  if (disk.extents === undefined) return [range];
  const parts: PlannedPart[] = [];
  for await (const extent of mergeArriving(covering(disk.extents(range, signal), range), sameState)) {
    parts.push({ offset: extent.offset, length: extent.length, zero: extent.state === "zero" });
    if (parts.length > PARTS_MAX) return [range];
  }
  return parts;
}

/**
 * What a context says about the start of a range, or all of it.
 *
 * @param extentsMax where to stop; the client asks on from there.
 */
export async function blockStatus(
  disk: ServedDisk,
  context: SelectedContext,
  range: Range,
  extentsMax: number,
  signal: AbortSignal,
): Promise<BlockStatus> {
  const lengths: number[] = [];
  const flags: number[] = [];
  for await (const { length, flag } of flagged(disk, context, range, signal)) {
    lengths.push(length);
    flags.push(flag);
    if (lengths.length === extentsMax) break;
  }
  return { contextId: context.id, lengths: Float64Array.from(lengths), flags: Float64Array.from(flags) };
}

async function* flagged(
  disk: ServedDisk,
  context: SelectedContext,
  range: Range,
  signal: AbortSignal,
): AsyncGenerator<{ length: number; flag: number }, void, undefined> {
  if (context.about === "dirty" && disk.dirty !== undefined) {
    const extents = covering(disk.dirty.extents(range, signal), range);
    for await (const extent of mergeArriving(extents, sameDirt)) {
      yield { length: extent.length, flag: extent.dirty ? DIRTY_FLAG : 0 };
    }
  } else if (disk.extents === undefined) {
    yield { length: range.length, flag: 0 };
  } else {
    for await (const extent of mergeArriving(covering(disk.extents(range, signal), range), sameState)) {
      const zero = extent.state === "zero";
      yield { length: extent.length, flag: zero ? AllocationFlag.HOLE | AllocationFlag.ZERO : 0 };
    }
  }
}

/**
 * Passes on extents cut to the range, and holds the disk to its contract: a gap would turn into a wrong answer.
 *
 * @throws AppError E_SERVED_EXTENTS (bug).
 */
async function* covering<T extends Range>(
  extents: AsyncIterable<T>,
  range: Range,
): AsyncGenerator<T, void, undefined> {
  let at = range.offset;
  for await (const extent of extents) {
    const part = overlap(extent, range);
    if (part?.offset !== at) break;
    yield { ...extent, ...part };
    at = endOf(part);
    if (at === endOf(range)) return;
  }
  throw new AppError("bug", "E_SERVED_EXTENTS", `The disk does not say what stands at offset ${at}`);
}
