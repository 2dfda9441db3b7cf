import type { Extent, ExtentState, Range } from "../disk/disk.ts";
import { AllocationFlag, Context, DIRTY_FLAG } from "./constants.ts";
import type { BlockStatus } from "./messages.ts";

/**
 * Extents of one block status reply, every context taken into account: not dirty is `unchanged`; else known to
 * be zero is `zero`; else `data`.
 *
 * Contexts cut the disk at different places and may tell more or less than was asked (proto.md, "Metadata
 * querying"), so this goes as far as all of them reach, and no further than `range`.
 *
 * @param told the states from `range.offset` on, by context.
 * @param bitmap name of the dirty bitmap's context, if one was asked for.
 * @returns sorted, without gaps, neighbours of different state; at least one.
 */
export function combineStatus(
  range: Range,
  told: ReadonlyMap<string, BlockStatus>,
  bitmap: string | undefined,
): Extent[] {
  const allocation = walk(told.get(Context.ALLOCATION));
  const dirt = walk(bitmap === undefined ? undefined : told.get(bitmap));
  const extents: Extent[] = [];
  const end = range.offset + range.length;
  for (let offset = range.offset; offset < end;) {
    const [allocated, dirty] = [allocation(offset - range.offset), dirt(offset - range.offset)];
    if (allocated === undefined || dirty === undefined) break;
    const next = Math.min(end, range.offset + Math.min(allocated.end, dirty.end));
    appendExtent(extents, offset, next - offset, stateOf(allocated.flags, dirty.flags, bitmap));
    offset = next;
  }
  return extents;
}

/** Appends, or lengthens the last extent when that has the same state and ends there. */
export function appendExtent(extents: Extent[], offset: number, length: number, state: ExtentState): void {
  const last = extents.at(-1);
  if (last?.state === state && last.offset + last.length === offset) {
    extents[extents.length - 1] = { ...last, length: last.length + length };
  } else {
    extents.push({ offset, length, state });
  }
}

function stateOf(allocated: number, dirty: number, bitmap: string | undefined): ExtentState {
  if (bitmap !== undefined && (dirty & DIRTY_FLAG) === 0) return "unchanged";
  return (allocated & AllocationFlag.ZERO) === 0 ? "data" : "zero";
}

/**
 * Finds the extent at a position, which only grows from call to call. Without a status there is one extent
 * without flags and without end.
 */
function walk(
  status: BlockStatus | undefined,
): (position: number) => { end: number; flags: number } | undefined {
  if (status === undefined) return () => ({ end: Infinity, flags: 0 });
  let index = 0;
  let end = status.lengths[0]!;
  return (position) => {
    while (position >= end) {
      index++;
      if (index >= status.lengths.length) return undefined;
      end += status.lengths[index]!;
    }
    return { end, flags: status.flags[index]! };
  };
}
