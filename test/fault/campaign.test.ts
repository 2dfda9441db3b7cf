import { randomInt } from "node:crypto";
import { expect, test } from "vitest";
import { runCampaign } from "./campaign/campaign.ts";
import { planLife, planRound } from "./campaign/plan.ts";
import { Report } from "./campaign/report.ts";

const SEED = Number(process.env["BLOCKHAUL_TEST_SEED"] ?? randomInt(1, 2 ** 31));
const MINUTES = Number(process.env["BLOCKHAUL_FAULT_MINUTES"] ?? 2);
/** What a round that has begun, and the end of a repository, take after the last round may begin. */
const END_MS = 30_000;

test(
  `under random faults nothing that was committed is lost, and nothing gets stuck (seed ${SEED})`,
  { timeout: MINUTES * 60_000 + 300_000 },
  async () => {
    const report = new Report();
    const lines: string[] = [];
    await runCampaign({
      seed: SEED,
      firstLife: 0,
      untilMs: performance.now() + Math.max(10_000, MINUTES * 60_000 - END_MS),
      stop: new AbortController().signal,
      report,
      say: (line) => void lines.push(line),
    });
    const log = lines.join("\n");
    expect(report.losses, log).toEqual([]);
    expect(report.problems, log).toEqual([]);
    expect(report.faultsHit, "a fault that nobody met tests nothing").toBeGreaterThan(0);
  },
);

test("a seed gives the same plan of faults, another seed another", () => {
  const plans = (seed: number): unknown[] =>
    Array.from({ length: 50 }, (_, number) => [planLife(seed, number), planRound(seed, number, number)]);
  expect(plans(1)).toEqual(plans(1));
  expect(plans(1)).not.toEqual(plans(2));
});
