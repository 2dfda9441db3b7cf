import { formatSize } from "../bytes/size.ts";
import type { Loss, Problem } from "../upkeep/verify.ts";

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
