import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { chunkCount, chunkLength, type ChunkRun, chunkRuns } from "../../../src/chunk/grid.ts";
import type { Extent, ExtentState } from "../../../src/disk/disk.ts";
import { hasCode } from "../../../src/errors.ts";

const STATES: readonly ExtentState[] = ["data", "zero", "unchanged"];

/** Extents of a small disk, empty ones and equal neighbours included, and a chunk size. */
const someDisk = fc
  .record({
    parts: fc.array(fc.tuple(fc.nat(40), fc.constantFrom(...STATES)), { maxLength: 20 }),
    chunkSize: fc.integer({ min: 1, max: 32 }),
  })
  .map(({ parts, chunkSize }) => {
    let offset = 0;
    const extents = parts.map(([length, state]): Extent => {
      offset += length;
      return { offset: offset - length, length, state };
    });
    return { extents, chunkSize, size: offset };
  });

/** Slow and obvious: the state of every byte, then of every chunk. */
function model(extents: readonly Extent[], size: number, chunkSize: number): (string | undefined)[] {
  const bytes = Array<ExtentState>(size);
  for (const { offset, length, state } of extents) bytes.fill(state, offset, offset + length);
  return Array.from({ length: chunkCount(size, chunkSize) }, (_, chunk) => {
    const own = bytes.slice(chunk * chunkSize, (chunk + 1) * chunkSize);
    if (own.every((state) => state === "unchanged")) return undefined;
    return own.every((state) => state === "zero") ? "zero" : "data";
  });
}

function runsOf(extents: readonly Extent[], size: number, chunkSize: number): Promise<ChunkRun[]> {
  return collect(chunkRuns(extents, size, chunkSize));
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

describe("chunkRuns", () => {
  test("says of every chunk what its bytes say", async () => {
    await fc.assert(
      fc.asyncProperty(someDisk, async ({ extents, size, chunkSize }) => {
        const found = Array<string | undefined>(chunkCount(size, chunkSize)).fill(undefined);
        for (const { first, count, state } of await runsOf(extents, size, chunkSize)) {
          expect(first + count).toBeLessThanOrEqual(found.length);
          found.fill(state, first, first + count);
        }
        expect(found).toEqual(model(extents, size, chunkSize));
      }),
      { numRuns: 1000 },
    );
  });

  test("is sorted, and neighbours of one state are one run", async () => {
    await fc.assert(
      fc.asyncProperty(someDisk, async ({ extents, size, chunkSize }) => {
        let before: ChunkRun = { first: -1, count: 0, state: "data" };
        for (const run of await runsOf(extents, size, chunkSize)) {
          expect(run.count).toBeGreaterThan(0);
          expect(run.first).toBeGreaterThanOrEqual(before.first + before.count);
          expect(run.first === before.first + before.count && run.state === before.state).toBe(false);
          before = run;
        }
      }),
    );
  });

  test("a chunk that is part zero and part unchanged is read; it is not zero", async () => {
    const extents: Extent[] = [
      { offset: 0, length: 8, state: "unchanged" },
      { offset: 8, length: 8, state: "zero" },
    ];
    expect(await runsOf(extents, 16, 16)).toEqual([{ first: 0, count: 1, state: "data" }]);
  });

  test("64 TiB of one state cost one run", async () => {
    const size = 64 * 2 ** 40 + 1;
    const extents: Extent[] = [{ offset: 0, length: size, state: "zero" }];
    expect(await runsOf(extents, size, 65_536)).toEqual([{ first: 0, count: 2 ** 30 + 1, state: "zero" }]);
  });

  test("an empty disk has no chunks", async () => {
    expect(await runsOf([], 0, 4096)).toEqual([]);
  });

  test.each<[string, Extent[]]>([
    ["nothing", []],
    ["an end too early", [{ offset: 0, length: 99, state: "data" }]],
    ["an end too late", [{ offset: 0, length: 101, state: "data" }]],
    ["a late start", [{ offset: 1, length: 99, state: "zero" }]],
    [
      "a gap",
      [
        { offset: 0, length: 10, state: "data" },
        { offset: 11, length: 89, state: "data" },
      ],
    ],
    [
      "an overlap",
      [
        { offset: 0, length: 10, state: "data" },
        { offset: 9, length: 91, state: "data" },
      ],
    ],
    [
      "a negative length",
      [
        { offset: 0, length: 100, state: "data" },
        { offset: 100, length: -10, state: "data" },
        { offset: 90, length: 10, state: "data" },
      ],
    ],
  ])("%s in the extents is an error, not an unchanged chunk", async (_, extents) => {
    await expect(runsOf(extents, 100, 16)).rejects.toSatisfy((error) => hasCode(error, "E_EXTENT_ORDER"));
  });

  test("passes a failure of the source on, and closes it when it stops early", async () => {
    let closed = 0;
    // eslint-disable-next-line @typescript-eslint/require-await -- an AsyncIterable is what is tested
    async function* source(): AsyncGenerator<Extent> {
      try {
        yield { offset: 0, length: 10, state: "data" };
        yield { offset: 10, length: 10, state: "zero" };
        throw new Error("lost");
      } finally {
        closed++;
      }
    }
    await expect(collect(chunkRuns(source(), 100, 5))).rejects.toThrow("lost");
    for await (const run of chunkRuns(source(), 100, 5)) {
      expect(run).toEqual({ first: 0, count: 2, state: "data" });
      break;
    }
    expect(closed).toBe(2);
  });
});

test("the lengths of a disk's chunks add up to the disk", () => {
  fc.assert(
    fc.property(fc.nat(10_000), fc.integer({ min: 1, max: 600 }), (size, chunkSize) => {
      const lengths = Array.from({ length: chunkCount(size, chunkSize) }, (_, i) =>
        chunkLength(i, size, chunkSize),
      );
      expect(lengths.reduce((sum, length) => sum + length, 0)).toBe(size);
      expect(
        lengths.every((length, i) => length === chunkSize || (i === lengths.length - 1 && length > 0)),
      ).toBe(true);
    }),
  );
});
