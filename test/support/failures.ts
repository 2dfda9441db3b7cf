import { expect } from "vitest";
import type { CliResult } from "./cli.ts";

/**
 * A failure as a user must see it: this exit code, no result on stdout, and, as the last line of stderr, an error
 * that names what is wrong; no stack trace. Remarks may stand before it.
 */
export function expectFailure(result: CliResult, code: number, ...named: (string | RegExp)[]): void {
  expect(result, result.stderr).toMatchObject({ code, stdout: "" });
  const lines = result.stderr.trimEnd().split("\n");
  expect(lines.filter((line) => line.startsWith("error: "))).toEqual([lines.at(-1)]);
  for (const part of named) expect(lines.at(-1)).toMatch(part);
  expect(result.stderr).not.toMatch(/^ {4}at |undefined|\[object|NaN/m);
  expect(lines.at(-1)).toMatch(/[^.]$/);
}
