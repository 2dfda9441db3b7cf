import { spawnSync } from "node:child_process";
import { resolve } from "node:path";

const FOLDER = resolve(import.meta.dirname, "../../.cache/python/bin");

/**
 * Runs a program of those that test/support/linters.txt lists, with Python or by itself.
 *
 * @returns its exit code, and all that it printed.
 */
export function runLinter(program: string, ...args: string[]): { status: number | null; said: string } {
  const { status, stdout, stderr, error } = spawnSync(`${FOLDER}/${program}`, args, {
    encoding: "utf8",
    maxBuffer: 2 ** 26,
  });
  if (error !== undefined) throw new Error(`${program} is not installed; run test/support/install.sh`);
  return { status, said: stdout + stderr };
}
