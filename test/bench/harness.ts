import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { formatSize, KiB } from "../../src/bytes/size.ts";

/** A program to run; `blockhaul(…)` makes one of ours. */
export interface Command {
  readonly program: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
}

/** What running something cost. */
export interface Measure {
  readonly seconds: number;
  /** User and system, all threads of all programs of a pipeline. */
  readonly cpuSeconds: number;
  /** The most memory the largest of its processes had, all threads. */
  readonly peakRssBytes: number;
  /** Of the last program. */
  readonly stdout: string;
}

const BIN = resolve(import.meta.dirname, "../../bin/blockhaul.js");
const POLL_MS = 20;
/** `sysconf(_SC_CLK_TCK)`, which is 100 on every Linux. */
const TICKS_PER_SECOND = 100;

/** The built program, as a user starts it. */
export function blockhaul(args: readonly string[], env: Readonly<Record<string, string>> = {}): Command {
  return { program: process.execPath, args: [BIN, ...args], env };
}

/**
 * Runs programs, each one's output the next one's input, and measures them.
 *
 * CPU and peak memory come from /proc, which is the same for every kind of program: the kernel keeps both itself
 * (`VmHWM`, `utime`, `stime`), so that polling can only miss what happens in the last 20 ms. Processes that
 * these start in turn are not counted.
 *
 * @throws Error with what it said when one of them fails.
 */
export async function measure(...pipeline: readonly Command[]): Promise<Measure> {
  const started = performance.now();
  const children: ChildProcess[] = [];
  let stdout = "";
  let stderr = "";
  for (const [index, { program, args, env }] of pipeline.entries()) {
    const before = children.at(-1)?.stdout;
    const child = spawn(program, args, {
      stdio: [before ?? "ignore", "pipe", "pipe"],
      env: { ...process.env, ...env },
    });
    // The programs hold the pipe between them themselves: not a byte of it comes through here.
    before?.destroy();
    child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr = (stderr + text).slice(-4000)));
    if (index === pipeline.length - 1)
      child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
    children.push(child);
  }
  const usage = children.map(() => ({ cpuSeconds: 0, peakRssBytes: 0 }));
  const poll = (): void =>
    children.forEach((child, index) => (usage[index] = usageOf(child.pid!) ?? usage[index]!));
  const timer = setInterval(poll, POLL_MS);
  poll();
  try {
    const codes = await Promise.all(
      children.map(async (child) => (await once(child, "close"))[0] as number | null),
    );
    const failed = codes.findIndex((code) => code !== 0);
    if (failed !== -1) {
      const { program, args } = pipeline[failed]!;
      throw new Error(`${program} ${args.join(" ")} ended with ${codes[failed]}: ${stderr}`);
    }
  } finally {
    clearInterval(timer);
  }
  return {
    seconds: (performance.now() - started) / 1000,
    cpuSeconds: usage.reduce((sum, { cpuSeconds }) => sum + cpuSeconds, 0),
    peakRssBytes: Math.max(...usage.map(({ peakRssBytes }) => peakRssBytes)),
    stdout,
  };
}

/** Nothing when the process has ended: what was seen before stands. */
function usageOf(pid: number): { cpuSeconds: number; peakRssBytes: number } | undefined {
  try {
    const peak = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"));
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    // proc(5): after the name, which may hold anything but ends in the last ")", utime is field 14, stime 15.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    if (peak === null) return undefined;
    return {
      cpuSeconds: (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND,
      peakRssBytes: Number(peak[1]) * KiB,
    };
  } catch {
    return undefined;
  }
}

/** One of the things compared: `run` is measured, `prepare` before it is not. */
export interface Side {
  readonly prepare?: () => Promise<void>;
  readonly run: () => Promise<Measure>;
}

/** Runs all sides in every round, in turns, each second round backwards, so that a slow minute of the machine hits all. */
export async function interleave<Name extends string>(
  rounds: number,
  sides: Readonly<Record<Name, Side>>,
): Promise<Readonly<Record<Name, readonly Measure[]>>> {
  const names = Object.keys(sides) as Name[];
  const measures = Object.fromEntries(names.map((name) => [name, []])) as unknown as Record<Name, Measure[]>;
  for (let round = 0; round < rounds; round++) {
    for (const name of round % 2 === 0 ? names : names.toReversed()) {
      await sides[name].prepare?.();
      await measure({ program: "sync", args: [] }); // what one left unwritten is not the next one's to wait for
      const done = await sides[name].run();
      measures[name].push(done);
      console.error(
        `  ${name}: ${done.seconds.toFixed(2)} s, ${done.cpuSeconds.toFixed(2)} CPU s, ${formatSize(done.peakRssBytes)}`,
      );
    }
  }
  return measures;
}

/** A line of the final table. */
export interface Finding {
  readonly what: string;
  readonly found: string;
  /** "at most 2.5"; empty where there is no bar. */
  readonly bar: string;
  readonly met: boolean | undefined;
}

/** How often as long one took as the other: per round, then the median, with the least and the most. */
export function ratioOf(
  ours: readonly Measure[],
  theirs: readonly Measure[],
): { median: number; text: string } {
  const ratios = ours.map((measure, round) => measure.seconds / theirs[round]!.seconds);
  const median = medianOf(ratios);
  const [least, most] = [Math.min(...ratios), Math.max(...ratios)];
  return { median, text: `${median.toFixed(2)} (${least.toFixed(2)}..${most.toFixed(2)})` };
}

export function medianOf(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** A finding that must not be above its bar. @param show turns both into text. */
export function atMost(what: string, value: number, bar: number, show: (value: number) => string): Finding {
  return { what, found: show(value), bar: `at most ${show(bar)}`, met: value <= bar };
}

export function ratioAtMost(
  what: string,
  ours: readonly Measure[],
  theirs: readonly Measure[],
  bar: number,
): Finding {
  const { median, text } = ratioOf(ours, theirs);
  return { what, found: text, bar: `at most ${bar}`, met: median <= bar };
}

export function note(what: string, found: string): Finding {
  return { what, found, bar: "", met: undefined };
}

export function peakOf(measures: readonly Measure[]): number {
  return Math.max(...measures.map(({ peakRssBytes }) => peakRssBytes));
}

export function printFindings(findings: readonly Finding[]): void {
  const rows = findings.map(({ what, found, bar, met }) => [
    what,
    found,
    bar,
    met === undefined ? "" : met ? "yes" : "NO",
  ]);
  const table = [["measured", "found", "bar", "met"], ...rows];
  const widths = table[0]!.map((_, column) => Math.max(...table.map((row) => row[column]!.length)));
  for (const row of table)
    console.log(
      row
        .map((cell, column) => cell.padEnd(widths[column]!))
        .join("  ")
        .trimEnd(),
    );
}

/** A folder for a bench, below `BLOCKHAUL_BENCH_DIR` or the system's; removed at the end. */
export async function inFolder<T>(work: (folder: string) => Promise<T>): Promise<T> {
  const parent = process.env["BLOCKHAUL_BENCH_DIR"] ?? tmpdir();
  await mkdir(parent, { recursive: true });
  const folder = await mkdtemp(join(parent, "blockhaul-bench-"));
  try {
    return await work(folder);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** What is left of `backup --json` when one asks what it cost. */
export interface BackupDocument {
  readonly generation: string;
  readonly kind: string;
  readonly stats: {
    readonly bytesRead: number;
    readonly bytesPacked: number;
    readonly chunksRead: number;
    readonly metadataBytes: number;
    readonly seconds: number;
    readonly peakRssBytes: number;
    readonly requests: Readonly<Record<string, number>>;
  };
}

export function documentOf({ stdout }: Measure): BackupDocument {
  return JSON.parse(stdout) as BackupDocument;
}
