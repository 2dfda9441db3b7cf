import { expect, test } from "vitest";
import { parseSchema } from "../../../src/qemu/qmp/schema.ts";

const object = (
  name: string,
  members: Record<string, string>,
  variants: Record<string, string> = {},
): object => ({
  "meta-type": "object",
  name,
  members: Object.entries(members).map(([member, type]) => ({ name: member, type })),
  ...(Object.keys(variants).length > 0 && {
    tag: "driver",
    variants: Object.entries(variants).map(([of, type]) => ({ case: of, type })),
  }),
});

const COMMAND = { "meta-type": "command", name: "add", "arg-type": "args" };

test("a member that only a variant of a variant has is found, and one of the object itself goes before", () => {
  const schema = parseSchema([
    COMMAND,
    object("args", { driver: "str" }, { file: "file", raw: "raw" }),
    object("file", { path: "str" }, { deep: "deep" }),
    object("raw", { path: "int" }),
    object("deep", { depth: "int" }),
  ])!;
  expect(schema.hasArgument("add", ["driver"])).toBe(true);
  expect(schema.hasArgument("add", ["path"])).toBe(true);
  expect(schema.hasArgument("add", ["depth"])).toBe(true);
  expect(schema.hasArgument("add", ["driver=raw", "path"])).toBe(true);
  expect(schema.hasArgument("add", ["driver=raw", "depth"])).toBe(false);
});

test("variants that lead round in a circle, or many ways to one place, are looked at once", () => {
  const chain = Array.from({ length: 100 }, (_, at) =>
    object(`o${at}`, {}, { a: `o${at + 1}`, b: `o${at + 1}` }),
  );
  const schema = parseSchema([
    COMMAND,
    object("args", {}, { self: "args", chain: "o0" }),
    ...chain,
    object("o100", { end: "str" }, { back: "args" }),
  ])!;
  expect(schema.hasArgument("add", ["end"])).toBe(true);
  expect(schema.hasArgument("add", ["nothing"])).toBe(false);
});
