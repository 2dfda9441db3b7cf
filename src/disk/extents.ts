import type { Extent, Range } from "./disk.ts";

/** A range of a dirty map: was it written since the point the map counts from? */
export interface DirtyExtent extends Range {
  readonly dirty: boolean;
}

/** First byte after the range. */
export function endOf(range: Range): number {
  return range.offset + range.length;
}

/** The part of `range` inside `within`, or undefined when they share no byte. */
export function overlap(range: Range, within: Range): Range | undefined {
  const offset = Math.max(range.offset, within.offset);
  const length = Math.min(endOf(range), endOf(within)) - offset;
  return length > 0 ? { offset, length } : undefined;
}

/**
 * The parts of the extents that lie in `within`, everything else about them kept.
 *
 * @param extents sorted by offset, not overlapping; reading stops at the first one behind `within`.
 */
export function* clip<T extends Range>(extents: Iterable<T>, within: Range): Generator<T, void, undefined> {
  for (const extent of extents) {
    if (extent.offset >= endOf(within)) return;
    const part = overlap(extent, within);
    if (part !== undefined) yield { ...extent, ...part };
  }
}

/**
 * Joins extents that touch and say the same, so that the result is the shortest list of the same meaning.
 *
 * @param extents sorted by offset, not overlapping, each at least one byte long; gaps stay gaps.
 * @param same do these two say the same, their places aside?
 */
export function* mergeNeighbours<T extends Range>(
  extents: Iterable<T>,
  same: (one: T, other: T) => boolean,
): Generator<T, void, undefined> {
  let held: T | undefined;
  for (const extent of extents) {
    if (held !== undefined && endOf(held) === extent.offset && same(held, extent)) {
      held = { ...held, length: held.length + extent.length };
    } else {
      if (held !== undefined) yield held;
      held = extent;
    }
  }
  if (held !== undefined) yield held;
}

/** `mergeNeighbours` for extents that arrive over time, such as `DiskSource.extents`. */
export async function* mergeArriving<T extends Range>(
  extents: AsyncIterable<T>,
  same: (one: T, other: T) => boolean,
): AsyncGenerator<T, void, undefined> {
  let held: T | undefined;
  for await (const extent of extents) {
    if (held !== undefined && endOf(held) === extent.offset && same(held, extent)) {
      held = { ...held, length: held.length + extent.length };
    } else {
      if (held !== undefined) yield held;
      held = extent;
    }
  }
  if (held !== undefined) yield held;
}

/** For the merge functions: do two extents have the same state? */
export function sameState(one: Extent, other: Extent): boolean {
  return one.state === other.state;
}

/** For the merge functions: are both dirty, or both clean? */
export function sameDirt(one: DirtyExtent, other: DirtyExtent): boolean {
  return one.dirty === other.dirty;
}

/**
 * What an incremental must look at: a dirty place has the state that the allocation map gives it, a clean one
 * is unchanged. A place that is dirty and zero stays zero: it may have held data before.
 *
 * @param allocation,dirty both sorted, without gaps, starting at the same offset. An NBD server may describe
 *   different lengths in different contexts of one reply (proto.md, "Metadata querying").
 * @returns as far as the shorter of the two reaches, neighbours of equal state joined.
 */
export function changedExtents(
  allocation: Iterable<Extent>,
  dirty: Iterable<DirtyExtent>,
): Generator<Extent> {
  return mergeNeighbours(crossed(allocation, dirty), sameState);
}

function* crossed(allocation: Iterable<Extent>, dirty: Iterable<DirtyExtent>): Generator<Extent> {
  const marks = dirty[Symbol.iterator]();
  let mark = marks.next();
  for (const extent of allocation) {
    while (mark.done !== true) {
      const part = overlap(extent, mark.value);
      if (part !== undefined) yield { ...part, state: mark.value.dirty ? extent.state : "unchanged" };
      if (endOf(mark.value) > endOf(extent)) break; // the mark goes on into the next extent
      mark = marks.next();
    }
    if (mark.done === true) return;
  }
}
