/**
 * Gives every decoder inputs that are nearly right, and looks for those that hang it, have it allocate more than it
 * may, or have it throw anything but our own error.
 *
 *     npm run test:fuzz [-- --seed N --minutes M --target NAME --case C]
 *
 * `--case` runs that one input of a target again. The kept cases of `test/fuzz/corpus` come first. Ends with code 1 when
 * something was found; each finding is printed as the corpus keeps it.
 */
import { randomInt } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { countAllocations } from "./allocations.ts";
import { allTargets, inputOf, runCase } from "./fuzz.ts";
import type { FuzzTarget } from "./target.ts";
import { Watchdog } from "./watchdog.ts";

/** Each target's turn, milliseconds. */
const TURN_MS = 40;
/** More of one target are not printed. */
const FINDINGS_MAX = 3;

interface Tally {
  cases: number;
  accepted: number;
  findings: number;
  slowestMs: number;
  mostBytes: number;
}

const { values } = parseArgs({
  options: {
    seed: { type: "string", default: `${randomInt(1, 2 ** 31)}` },
    minutes: { type: "string", default: "1" },
    target: { type: "string" },
    case: { type: "string" },
  },
});
const seed = Number(values.seed);
const untilMs = performance.now() + Number(values.minutes) * 60_000;
if (!Number.isInteger(seed) || !(untilMs > 0))
  throw new Error("usage: npm run test:fuzz -- --seed N --minutes M");

const all = await allTargets();
const targets = all.filter(({ name }) => values.target === undefined || name === values.target);
if (targets.length === 0) throw new Error(`there are the targets ${all.map(({ name }) => name).join(", ")}`);
const allocations = countAllocations();
const watchdog = new Watchdog(targets.map(({ name }) => name));
const tallies = new Map<FuzzTarget, Tally>(
  targets.map((target) => [target, { cases: 0, accepted: 0, findings: 0, slowestMs: 0, mostBytes: 0 }]),
);
const stop = new AbortController();
process.once("SIGINT", () => stop.abort()).once("SIGTERM", () => stop.abort());

console.error(`seed ${seed}, ${targets.length} targets`);
if (values.case !== undefined) {
  await tryCase(targets[0]!, Number(values.case));
} else {
  await tryCorpus();
  await tryAll();
}
await watchdog.stop();
report();

async function tryCorpus(): Promise<void> {
  const folder = join(import.meta.dirname, "corpus");
  for (const file of readdirSync(folder).filter((name) => name.endsWith(".json"))) {
    const kept = JSON.parse(readFileSync(join(folder, file), "utf8")) as {
      target: string;
      seed: number;
      hex: string;
    };
    const target = targets.find(({ name }) => name === kept.target);
    if (target !== undefined) await tryInput(target, Buffer.from(kept.hex, "hex"), kept.seed, file);
  }
}

async function tryAll(): Promise<void> {
  for (let turn = 0; !isOver(); turn++) {
    for (const target of targets) {
      const endMs = Math.min(untilMs, performance.now() + TURN_MS);
      do await tryCase(target, tallies.get(target)!.cases);
      while (performance.now() < endMs && !isOver());
      if (isOver()) return;
    }
  }
}

function isOver(): boolean {
  return performance.now() >= untilMs || stop.signal.aborted;
}

async function tryCase(target: FuzzTarget, number: number): Promise<void> {
  watchdog.began(targets.indexOf(target), number);
  await tryInput(target, inputOf(target, seed, number), number, `case ${number}`);
}

async function tryInput(target: FuzzTarget, input: Buffer, chance: number, what: string): Promise<void> {
  const tally = tallies.get(target)!;
  const outcome = await runCase(target, input, chance, allocations);
  tally.cases++;
  if (outcome.accepted) tally.accepted++;
  tally.slowestMs = Math.max(tally.slowestMs, outcome.ms);
  tally.mostBytes = Math.max(tally.mostBytes, outcome.allocated);
  if (outcome.finding === undefined || ++tally.findings > FINDINGS_MAX) return;
  console.log(`FOUND by ${target.name}, seed ${seed}, ${what}: ${outcome.finding}`);
  if (input.length <= 8192) {
    console.log(JSON.stringify({ target: target.name, seed: chance, why: "", hex: input.toString("hex") }));
  }
}

function report(): void {
  const rows = targets.map((target) => {
    const { cases, accepted, findings, slowestMs, mostBytes } = tallies.get(target)!;
    return { target: target.name, cases, accepted, findings, slowestMs: Math.round(slowestMs), mostBytes };
  });
  console.log("TARGET                                CASES  ACCEPTED  FOUND  SLOWEST ms   MOST KiB");
  for (const { target, cases, accepted, findings, slowestMs, mostBytes } of rows) {
    const numbers = [cases, accepted, findings, slowestMs, Math.round(mostBytes / 1024)];
    const widths = [11, 10, 7, 12, 11];
    console.log(target.padEnd(32) + numbers.map((number, at) => `${number}`.padStart(widths[at]!)).join(""));
  }
  const total = (pick: (row: (typeof rows)[number]) => number): number =>
    rows.reduce((sum, row) => sum + pick(row), 0);
  const [cases, findings] = [total((row) => row.cases), total((row) => row.findings)];
  console.log(
    JSON.stringify({ seed, cases, findings, rssMiB: Math.round(process.resourceUsage().maxRSS / 1024) }),
  );
  process.exit(findings > 0 ? 1 : 0);
}
