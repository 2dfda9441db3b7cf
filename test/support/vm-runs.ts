import type { ChildProcess } from "node:child_process";
import { runCli, type CliResult } from "./cli.ts";
import type { GenerationJson } from "./exported-images.ts";
import { guardsOf } from "./guards.ts";
import { parseGenerationBitmap } from "../../src/qemu/names.ts";
import type { ProxiedCommand } from "./qmp-proxy.ts";
import type { TestRepository } from "./repositories.ts";

export interface VmGenerationJson extends GenerationJson {
  readonly consistency: "filesystem" | "crash" | "unknown";
  readonly disks: readonly {
    readonly name: string;
    readonly size: number;
    readonly layers: number;
    readonly kind: "full" | "incremental" | "rescan";
    readonly reason: string;
  }[];
  readonly guest: { readonly frozenMs?: number; readonly takeMs: number };
}

/** What one run of the program did. */
export interface VmRun extends CliResult {
  /** When it exited with 0. */
  readonly generation: VmGenerationJson | undefined;
  /** Warnings, and the error that it ended with. */
  readonly said: readonly { readonly level: string; readonly message: string; readonly code?: string }[];
}

/** Runs `backup` with `--json` in the repository. @param started given the process as soon as it runs. */
export async function runVmBackup(
  { env }: TestRepository,
  args: readonly string[],
  options: { readonly started?: (child: ChildProcess) => void; readonly under?: readonly string[] } = {},
): Promise<VmRun> {
  const result = await runCli(["backup", ...args, "--json"], { env, ...options });
  const generation = result.code === 0 ? (JSON.parse(result.stdout) as VmGenerationJson) : undefined;
  const said = result.stderr.split("\n").filter((line) => line.startsWith("{"));
  return { ...result, generation, said: said.map((line) => JSON.parse(line) as VmRun["said"][number]) };
}

/** @throws Error unless it exited with 0. */
export function generationOf({ code, stderr, generation }: VmRun): VmGenerationJson {
  if (generation === undefined) throw new Error(`backup exited with ${code}: ${stderr}`);
  return generation;
}

/**
 * Ends a run by SIGKILL.
 *
 * @param guarded false: its guard too, and first.
 * @returns pids of the guard.
 */
export async function killRun(child: ChildProcess, guarded: boolean): Promise<number[]> {
  const ended = new Promise((done) => child.once("exit", done));
  const guards = await guardsOf(child.pid!);
  if (!guarded) for (const pid of guards) process.kill(pid, "SIGKILL");
  child.kill("SIGKILL");
  if (child.exitCode === null && child.signalCode === null) await ended;
  return guards;
}

/** Of a transaction that begins a generation's bitmaps: that is the instant. */
export function generationBegun({ execute, arguments: given }: ProxiedCommand): string | undefined {
  if (execute !== "transaction") return undefined;
  const actions = given!["actions"] as { type: string; data: { name?: string } }[];
  const names = actions.filter(({ type }) => type === "block-dirty-bitmap-add").map(({ data }) => data.name!);
  return names.map((name) => parseGenerationBitmap(name)?.generation).find((id) => id !== undefined);
}
