import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { runCli, type CliResult } from "./cli.ts";

const POLL_MS = 5;

/** Runs the program and keeps whatever anybody could see of it: its outputs, and its line in the list of processes. */
export class WatchedCli {
  /** Outputs and command lines, also those of programs it started. */
  readonly seen: string[] = [];
  readonly #env: Readonly<Record<string, string>>;

  /** @param env of every run. */
  constructor(env: Readonly<Record<string, string>>) {
    this.#env = env;
  }

  /** @param started called with the process as soon as it runs. */
  async run(
    args: readonly string[],
    env: Readonly<Record<string, string>> = {},
    started?: (child: ChildProcess) => void,
  ): Promise<CliResult> {
    const lines = new Set<string>();
    const watch = (child: ChildProcess): void => {
      const timer = setInterval(() => this.look(child.pid!, lines), POLL_MS);
      void once(child, "exit").then(() => clearInterval(timer));
      started?.(child);
    };
    const result = await runCli(args, { env: { ...this.#env, ...env }, started: watch });
    this.seen.push(result.stdout, result.stderr, ...lines);
    return result;
  }

  /** Command lines of a process and of all below it, as `ps` shows them. */
  look(pid: number, lines: Set<string>): void {
    try {
      const line = readFileSync(`/proc/${pid}/cmdline`, "utf8");
      const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8");
      if (line !== "") lines.add(line.replaceAll("\0", " "));
      for (const child of children.split(" ").filter((one) => one !== "")) this.look(Number(child), lines);
    } catch {
      // it has ended
    }
  }
}
