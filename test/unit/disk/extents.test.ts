import fc from "fast-check";
import { expect, test } from "vitest";
import { BlockMap } from "../../../src/disk/block-map.ts";
import type { Extent, ExtentState, Range } from "../../../src/disk/disk.ts";
import {
  changedExtents,
  clip,
  endOf,
  mergeArriving,
  mergeNeighbours,
  overlap,
  sameDirt,
  sameState,
  type DirtyExtent,
} from "../../../src/disk/extents.ts";

/** Every model here is a disk of one state per byte. */
const bytesOf = <S>(extents: Iterable<Range>, stateOf: (extent: never) => S): Map<number, S> => {
  const bytes = new Map<number, S>();
  for (const extent of extents) {
    for (let at = extent.offset; at < endOf(extent); at++) bytes.set(at, stateOf(extent as never));
  }
  return bytes;
};
const stateOf = (extent: Extent): ExtentState => extent.state;
const dirtOf = (extent: DirtyExtent): boolean => extent.dirty;

const states = fc.constantFrom<ExtentState>("data", "zero", "unchanged");
const lengths = fc.integer({ min: 1, max: 9 });
/** Sorted extents, some with gaps between them. */
const gappy = fc
  .array(fc.tuple(fc.integer({ min: 0, max: 2 }), lengths, states), { maxLength: 12 })
  .map((parts) => {
    let at = 0;
    return parts.map(([gap, length, state]): Extent => {
      const extent = { offset: at + gap, length, state };
      at = endOf(extent);
      return extent;
    });
  });
const covering = fc.array(fc.tuple(lengths, states), { maxLength: 12 }).map((parts) => {
  let at = 5;
  return parts.map(([length, state]): Extent => {
    const extent = { offset: at, length, state };
    at += length;
    return extent;
  });
});

async function* arriving<T>(items: readonly T[]): AsyncGenerator<T> {
  for (const item of items) yield await Promise.resolve(item);
}

test("merging changes no byte's state and leaves no equal neighbours", async () => {
  await fc.assert(
    fc.asyncProperty(gappy, async (extents) => {
      const merged = [...mergeNeighbours(extents, sameState)];
      expect(bytesOf(merged, stateOf)).toEqual(bytesOf(extents, stateOf));
      const joinable = merged.filter((extent, index) => {
        const before = merged[index - 1];
        return before !== undefined && endOf(before) === extent.offset && before.state === extent.state;
      });
      expect(joinable).toEqual([]);
      const slowly: Extent[] = [];
      for await (const extent of mergeArriving(arriving(extents), sameState)) slowly.push(extent);
      expect(slowly).toEqual(merged);
    }),
  );
});

test("clipping keeps exactly the bytes inside", () => {
  fc.assert(
    fc.property(gappy, fc.nat(60), fc.nat(40), (extents, offset, length) => {
      const clipped = [...clip(extents, { offset, length })];
      const want = [...bytesOf(extents, stateOf)].filter(([at]) => at >= offset && at < offset + length);
      expect([...bytesOf(clipped, stateOf)]).toEqual(want);
      expect(clipped.every((extent) => extent.length > 0)).toBe(true);
    }),
  );
});

test("overlap of ranges that only touch, or of an empty one, is none", () => {
  expect(overlap({ offset: 0, length: 4 }, { offset: 4, length: 4 })).toBeUndefined();
  expect(overlap({ offset: 0, length: 4 }, { offset: 2, length: 0 })).toBeUndefined();
  expect(overlap({ offset: 0, length: 4 }, { offset: 3, length: 9 })).toEqual({ offset: 3, length: 1 });
});

test("a dirty place has the allocation's state, a clean one is unchanged, as far as both maps reach", () => {
  fc.assert(
    fc.property(covering, covering, (allocation, marks) => {
      const dirty = marks.map(({ offset, length, state }) => ({ offset, length, dirty: state === "data" }));
      const result = [...changedExtents(allocation, dirty)];
      const dirtAt = bytesOf(dirty, dirtOf);
      const want = [...bytesOf(allocation, stateOf)]
        .filter(([at]) => dirtAt.has(at))
        .map(([at, state]) => [at, dirtAt.get(at) === true ? state : "unchanged"]);
      expect([...bytesOf(result, stateOf)]).toEqual(want);
      expect([...mergeNeighbours(result, sameState)]).toEqual(result);
    }),
  );
});

test("a block map remembers whole blocks and describes exactly the range asked for", () => {
  const ranges = fc.array(fc.tuple(fc.nat(700), fc.nat(80)), { maxLength: 6 });
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 700 }),
      fc.integer({ min: 1, max: 20 }),
      ranges,
      (size, block, written) => {
        const map = new BlockMap(size, block);
        const blocks = new Set<number>();
        for (const [start, length] of written) {
          const range = { offset: start % size, length: Math.min(length, size - (start % size)) };
          map.mark(range);
          for (let at = range.offset; at < endOf(range); at++) blocks.add(Math.floor(at / block));
        }
        const asked = { offset: Math.floor(size / 3), length: size - Math.floor(size / 3) };
        const found = [...map.extents(asked)];
        expect([...bytesOf(found, dirtOf)]).toEqual(
          Array.from({ length: asked.length }, (_, index) => {
            const at = asked.offset + index;
            return [at, blocks.has(Math.floor(at / block))];
          }),
        );
        expect([...mergeNeighbours(found, sameDirt)]).toEqual(found);
        map.clear();
        expect([...map.extents(asked)]).toEqual(asked.length > 0 ? [{ ...asked, dirty: false }] : []);
      },
    ),
  );
});

test("a block map refuses marks past the disk's end", () => {
  expect(() => new BlockMap(10, 4).mark({ offset: 8, length: 3 })).toThrow(/Marked 11/);
});
