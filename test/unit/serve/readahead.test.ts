import { expect, test } from "vitest";
import { Readahead } from "../../../src/serve/readahead.ts";

/** What is fetched ahead for each chunk read, as "from-to". */
function ahead(readahead: Readahead, chunks: readonly number[]): string[] {
  return chunks.flatMap((chunk) => {
    const span = readahead.note({ from: chunk, to: chunk + 1 });
    return span === undefined ? [] : [`${span.from}-${span.to}`];
  });
}

test("ranges ahead of one who goes on grow up to the bound, touch, and end with the disk", () => {
  const chunks = Array.from({ length: 60 }, (_, index) => index);
  const spans = ahead(new Readahead(60, 2, 16), chunks);
  expect(spans.slice(0, 3)).toEqual(["2-4", "4-7", "7-12"]);
  const bounds = spans.map((span) => span.split("-").map(Number));
  bounds.forEach(([from, to], index) => {
    if (index > 0) expect(from).toBe(bounds[index - 1]![1]);
    expect(to! - from!).toBeLessThanOrEqual(16);
  });
  expect(bounds.at(-1)![1]).toBe(60);
});

test("reads here and there get nothing", () => {
  expect(ahead(new Readahead(10_000, 2, 16), [5, 900, 40, 7000, 300, 41 + 30, 2])).toEqual([]);
});

test("small reads within one chunk move nobody on", () => {
  expect(ahead(new Readahead(100, 2, 16), [7, 7, 7, 7])).toEqual([]);
});

test("several readers, and requests that overtake each other", () => {
  const readahead = new Readahead(10_000, 2, 16);
  const spans = ahead(readahead, [0, 5000, 1, 5001, 3, 2, 5002, 5, 4]);
  expect(spans[0]).toBe("2-4");
  expect(spans[1]).toBe("5002-5004");
  expect(spans.every((span, index) => spans.indexOf(span) === index)).toBe(true);
});

test("a bound of nothing reads nothing ahead", () => {
  expect(ahead(new Readahead(100, 0, 0), [0, 1, 2, 3, 4])).toEqual([]);
});
