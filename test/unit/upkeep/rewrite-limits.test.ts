import { expect, test } from "vitest";
import { parseMaxRepack, parseMaxUnused } from "../../../src/upkeep/prune/rewrite-limits.ts";

test.each([
  ["5%", { percent: 5 }],
  ["0.5%", { percent: 0.5 }],
  ["100%", { percent: 100 }],
  ["0", 0],
  ["20GiB", 20 * 1024 ** 3],
  ["unlimited", Infinity],
])("--max-unused %s", (text, meant) => {
  expect(parseMaxUnused(text)).toEqual(meant);
});

test.each(["", "5 percent", "101%", "-1%", "%", "1e3%", "infinity"])("--max-unused %j is refused", (text) => {
  expect(() => parseMaxUnused(text)).toThrow(
    expect.objectContaining({ kind: "usage", code: "E_MAX_UNUSED" }),
  );
});

test("--max-repack-bytes", () => {
  expect(parseMaxRepack("50GiB")).toBe(50 * 1024 ** 3);
  expect(parseMaxRepack("0")).toBe(0);
  expect(parseMaxRepack("unlimited")).toBe(Infinity);
  for (const text of ["", "5%", "-1", "1.5"])
    expect(() => parseMaxRepack(text), text).toThrow(expect.objectContaining({ code: "E_MAX_REPACK" }));
});
