import { readFileSync } from "node:fs";
import { join } from "node:path";

/** A file of test/vectors, made by a program that shares no code with this one. */
export function vectors(name: string): unknown {
  return JSON.parse(readFileSync(join(import.meta.dirname, "../vectors", `${name}.json`), "utf8"));
}

export interface MustFail {
  readonly name: string;
  readonly code: string;
  readonly hex: string;
}
