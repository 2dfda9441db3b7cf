import fc from "fast-check";
import { expect, test } from "vitest";
import type { Extent, ExtentState, Range } from "../../../src/disk/disk.ts";
import { alignedPieces, widen } from "../../../src/nbd/align.ts";
import { allOf } from "../../../src/nbd/all-of.ts";
import { Coverage } from "../../../src/nbd/coverage.ts";
import { combineStatus } from "../../../src/nbd/status.ts";
import { statusOf } from "../../support/fake-nbd-server.ts";

const disk = fc
  .record({
    minimum: fc.constantFrom(1, 2, 8, 16),
    times: fc.integer({ min: 1, max: 5 }),
    size: fc.integer({ min: 1, max: 200 }),
    a: fc.nat(),
    b: fc.nat(),
  })
  .map(({ minimum, times, size, a, b }) => {
    const [start, end] = [a % (size + 1), b % (size + 1)].sort((x, y) => x - y) as [number, number];
    const blockSize = { minimum, preferred: minimum, maximum: minimum * times + (a % minimum) };
    return { blockSize, size, range: { offset: start, length: end - start } };
  });

test("pieces bring every byte once, in order, in requests the server must accept", () => {
  fc.assert(
    fc.property(disk, ({ blockSize, size, range }) => {
      let at = range.offset;
      for (const piece of alignedPieces(range, blockSize, size)) {
        expect(piece.offset + piece.skip).toBe(at);
        expect(piece.take).toBeGreaterThan(0);
        expect(piece.skip + piece.take).toBeLessThanOrEqual(piece.length);
        expect(piece.length).toBeLessThanOrEqual(blockSize.maximum);
        expect(piece.offset % blockSize.minimum).toBe(0);
        const end = piece.offset + piece.length;
        expect(end === size || end % blockSize.minimum === 0).toBe(true);
        if (end % blockSize.minimum !== 0) expect(piece.length).toBeLessThan(blockSize.minimum);
        if (piece.take < piece.length) expect(piece.length).toBeLessThanOrEqual(blockSize.minimum);
        at += piece.take;
      }
      expect(at).toBe(range.offset + range.length);
    }),
    { numRuns: 2000 },
  );
});

test("an aligned read is one request of its own memory", () => {
  const blockSize = { minimum: 512, preferred: 4096, maximum: 2 ** 25 };
  const range = { offset: 512, length: 262_144 };
  expect(alignedPieces(range, blockSize, 2 ** 40)).toEqual([{ ...range, skip: 0, take: range.length }]);
});

test("a widened range is the smallest of whole blocks", () => {
  fc.assert(
    fc.property(disk, ({ blockSize: { minimum }, size, range }) => {
      const { offset, length } = widen(range, minimum, size);
      expect(offset).toBe(range.offset - (range.offset % minimum));
      const end = range.offset + range.length;
      expect(offset + length).toBe(
        Math.min(size, end % minimum === 0 ? end : end + minimum - (end % minimum)),
      );
    }),
  );
});

const BITMAP = "qemu:dirty-bitmap:b";
const runs = fc.array(fc.tuple(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 0, max: 3 })), {
  minLength: 1,
  maxLength: 20,
});

/** The slow model: one flag per byte. */
function flagsOf(extents: [number, number][]): number[] {
  return extents.flatMap(([length, flags]) => Array.from({ length }, () => flags));
}

test("contexts are combined as byte for byte they would be", () => {
  fc.assert(
    fc.property(runs, fc.option(runs), fc.integer({ min: 1, max: 60 }), (allocation, dirty, length) => {
      const told = new Map([["base:allocation", statusOf(1, allocation)]]);
      if (dirty !== null) told.set(BITMAP, statusOf(2, dirty));
      const range: Range = { offset: 1000, length };
      const extents = combineStatus(range, told, dirty === null ? undefined : BITMAP);
      const [zeros, dirt] = [flagsOf(allocation), dirty === null ? undefined : flagsOf(dirty)];
      const reach = Math.min(length, zeros.length, dirt?.length ?? Infinity);
      const want = Array.from({ length: reach }, (_, at): ExtentState => {
        if (dirt !== undefined && (dirt[at]! & 1) === 0) return "unchanged";
        return (zeros[at]! & 2) !== 0 ? "zero" : "data";
      });
      expect(
        extents.flatMap((each: Extent) => Array.from({ length: each.length }, () => each.state)),
      ).toEqual(want);
      extents.forEach((each, index) => {
        const before = extents[index - 1];
        expect(each.offset).toBe(before === undefined ? 1000 : before.offset + before.length);
        expect(each.state).not.toBe(before?.state);
      });
    }),
    { numRuns: 2000 },
  );
});

test("a hole that does not say it reads as zeros is data", () => {
  const told = new Map([["base:allocation", statusOf(1, [[10, 1]])]]);
  expect(combineStatus({ offset: 0, length: 10 }, told, undefined)).toEqual([
    { offset: 0, length: 10, state: "data" },
  ]);
});

test("coverage knows what came, in any order, and that nothing came twice", () => {
  const cuts = fc.uniqueArray(fc.integer({ min: 1, max: 99 }), { maxLength: 20 });
  fc.assert(
    fc.property(cuts, fc.array(fc.nat()), fc.nat(), (inner, shuffle, again) => {
      const edges = [0, ...inner.sort((a, b) => a - b), 100];
      const pieces = edges.slice(1).map((end, index) => [edges[index]!, end] as const);
      pieces.sort((a, b) => (shuffle[a[0]] ?? 0) - (shuffle[b[0]] ?? 0));
      const coverage = new Coverage();
      pieces.forEach(([start, end], index) => {
        expect(coverage.isWhole(0, 100)).toBe(false);
        coverage.add(start, end);
        if (index < pieces.length - 1) expect(coverage.isWhole(0, 100)).toBe(false);
      });
      expect(coverage.isWhole(0, 100)).toBe(true);
      const [start, end] = pieces[again % pieces.length]!;
      expect(() => coverage.add(start, end)).toThrow("twice");
    }),
    { numRuns: 500 },
  );
});

test("coverage sees every overlap", () => {
  for (let start = 0; start < 30; start++) {
    for (let end = start + 1; end <= 30; end++) {
      const coverage = new Coverage();
      coverage.add(5, 10);
      coverage.add(20, 25);
      const overlaps = (start < 10 && end > 5) || (start < 25 && end > 20);
      const attempt = (): void => coverage.add(start, end);
      if (overlaps) expect(attempt, `${start}-${end}`).toThrow("twice");
      else expect(attempt, `${start}-${end}`).not.toThrow();
    }
  }
});

test("of several calls the first failure stops the others, and all have settled when it is thrown", async () => {
  const { signal } = new AbortController();
  let running = 0;
  const attempt = allOf([1, 2, 3], signal, async (item, stop) => {
    running++;
    try {
      if (item === 2) throw new Error("second");
      await new Promise((_resolve, reject) =>
        stop.addEventListener("abort", () => reject(stop.reason as Error), { once: true }),
      );
    } finally {
      running--;
    }
  });
  await expect(attempt).rejects.toThrow("second");
  expect(running).toBe(0);
});
