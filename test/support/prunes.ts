import { onTestFinished, vi } from "vitest";
import type { Repository } from "../../src/repository/config.ts";
import { loadGenerations } from "../../src/repository/generations.ts";
import type { PruneReport } from "../../src/upkeep/prune/prune-report.ts";
import { prune, type PruneOptions } from "../../src/upkeep/prune/prune.ts";
import { forget } from "../../src/upkeep/forget.ts";
import type { Judged } from "../../src/upkeep/plan-forget.ts";
import type { PinLookup } from "../../src/repository/pins.ts";

export const HOUR = 3_600_000;
export const DAY = 24 * HOUR;

/** As the command line has it, but nobody is known to be gone. */
export const LOOKUP: PinLookup = { graceMs: DAY, isGone: () => false };

/** Stops the clock of this process, and so of stores in memory; `forward` moves it. Undone with the test. */
export function stopClock(): void {
  vi.useFakeTimers({ toFake: ["Date"] });
  onTestFinished(() => void vi.useRealTimers());
}

export function forward(ms: number): void {
  vi.setSystemTime(Date.now() + ms);
}

export async function runPrune(
  repository: Repository,
  options: Partial<PruneOptions> = {},
  run = new AbortController(),
): Promise<PruneReport> {
  const whole: PruneOptions = {
    graceMs: DAY,
    dryRun: false,
    lookup: LOOKUP,
    holder: { host: "test", pid: 1 },
    warn: (message) => {
      throw new Error(`unexpected warning: ${message}`);
    },
    ...options,
  };
  return await prune(repository, whole, run);
}

/** Forgets generations by their ids, whatever they are. */
export async function forgetThem(
  repository: Repository,
  source: string,
  generations: readonly string[],
  lookup: PinLookup = LOOKUP,
): Promise<void> {
  const signal = new AbortController().signal;
  const manifests = await loadGenerations(repository, source, signal);
  const remove = manifests
    .filter(({ generation }) => generations.includes(generation))
    .map(({ generation, frozenAt, digest }): Judged => {
      return { source, generation, frozenAt, digest, reasons: ["asked for"] };
    });
  await forget(repository, { source, keep: [], remove }, lookup, new AbortController());
}
