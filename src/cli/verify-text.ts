import { formatSize } from "../bytes/size.ts";
import { AppError } from "../errors.ts";
import type { ScrubReport } from "../upkeep/scrub.ts";
import type { Loss, Problem, VerifyReport } from "../upkeep/verify.ts";

/** Lines of a kind that people are shown; the rest is counted, and listed with `--json`. */
const LINES_MAX = 40;
const RANGES_SHOWN = 4;
const GENERATIONS_SHOWN = 4;

/** A line for each problem. */
export function problemLines(problems: readonly Problem[], leftOut: number): string[] {
  const lines = problems.map(({ message, generations }) => {
    return generations.length === 0 ? message : `${message} (needed by ${someOf(generations)})`;
  });
  return capped(lines, leftOut);
}

/** What was checked without a key, and what was not. */
export function describeScrub(report: ScrubReport): string {
  const { packs, packsRead, bytesRead, objectsRead, problems } = report;
  const lines = [
    `${packsRead} of ${packs} packs (${formatSize(bytesRead)}) and ${objectsRead} other objects read`,
    ...problemLines(problems, report.problemsLeftOut),
  ];
  const unchecked = Object.entries(report.unchecked).map(
    ([type, count]) => `${count} ${UNCHECKED[type] ?? type}`,
  );
  if (unchecked.length > 0) lines.push(`Not to be checked without the key: ${unchecked.join(", ")}`);
  if (report.transient > 0) lines.push(transientLine(report.transient));
  if (problems.length === 0) lines.push("No problems found");
  else lines.push("What that costs, blockhaul verify --read-data tells");
  return lines.join("\n");
}

/** Kinds of objects, in the plural. */
const UNCHECKED: Readonly<Record<string, string>> = {
  layer: "layers (but for their ends)",
  generation: "manifests",
  runBegin: "records of runs begun",
  runEnd: "records of runs ended",
  drill: "records of drills",
  lease: "leases",
  condemned: "condemned records",
  damaged: "damaged records",
  hold: "holds",
  forward: "forwards",
};

export function transientLine(count: number): string {
  return `${count} checks failed once and went well when they were made again`;
}

/** A line for each disk of each generation that lost something, with its ranges in bytes. */
export function lossLines(losses: readonly Loss[]): string[] {
  return capped(losses.map(lossLine), 0);
}

function lossLine({ source, generation, disk, bytes, ranges, rangesLeftOut }: Loss): string {
  const shown = ranges.slice(0, RANGES_SHOWN).map(({ offset, length }) => `${offset}-${offset + length - 1}`);
  const more = ranges.length - shown.length + rangesLeftOut;
  const rest = more === 0 ? "" : ` and ${more} more ranges`;
  return `lost: ${source} ${generation} ${disk}: ${formatSize(bytes)}, bytes ${shown.join(", ")}${rest}`;
}

function someOf(generations: readonly string[]): string {
  const more = generations.length - GENERATIONS_SHOWN;
  return generations.slice(0, GENERATIONS_SHOWN).join(", ") + (more > 0 ? ` and ${more} more` : "");
}

function capped(lines: readonly string[], leftOut: number): string[] {
  const more = lines.length - Math.min(lines.length, LINES_MAX) + leftOut;
  return [...lines.slice(0, LINES_MAX), ...(more === 0 ? [] : [`and ${more} more; all with --json`])];
}

/** @throws AppError E_PERCENT (usage). */
export function parsePercent(flag: string | true | undefined): number {
  if (flag === undefined) return 0;
  if (flag === true) return 100;
  const percent = Number(flag.replace(/%$/, ""));
  if (percent > 0 && percent <= 100) return percent;
  throw new AppError("usage", "E_PERCENT", `Not a percentage: "${flag}"; for example --read-data=10%`);
}

/** What a verify found, and what can be done about it. */
export function describeVerify(report: VerifyReport): string {
  const { problems, losses } = report;
  const head = `${report.generations} generations, ${report.packs} packs, ${report.chunks} chunks in use`;
  const read =
    report.chunksRead > 0 ? `; ${report.chunksRead} chunks read (${formatSize(report.bytesRead)})` : "";
  const lines = [
    head + read,
    ...problemLines(problems, report.problemsLeftOut),
    ...lossLines(losses),
    ...remarks(report),
  ];
  return (problems.length === 0 ? [...lines, "No problems found"] : lines).join("\n");
}

/** What it means, and what can be done. */
function remarks(report: VerifyReport): string[] {
  const lines: string[] = [];
  if (report.slotsRecorded > 0) {
    lines.push(
      `${report.slotsRecorded} bad chunks were recorded: no backup takes them for duplicates any more`,
    );
  }
  if (report.losses.length > 0) lines.push(...report.advice);
  if (report.slotsHealed > 0) {
    lines.push(
      `${report.slotsHealed} chunks are recorded as bad, but were read well: blockhaul repair takes those records back`,
    );
  }
  if (report.transient > 0) lines.push(transientLine(report.transient));
  return lines;
}
