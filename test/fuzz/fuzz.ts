import { AppError } from "../../src/errors.ts";
import { seeded } from "../support/seeded.ts";
import type { Allocations } from "./allocations.ts";
import type { Random } from "./mutate.ts";
import type { FuzzTarget } from "./target.ts";
import { lineTargets } from "./targets/lines.ts";
import { nbdClientTargets } from "./targets/nbd-client.ts";
import { nbdServerTargets } from "./targets/nbd-server.ts";
import { objectTargets } from "./targets/objects.ts";
import { recordTargets } from "./targets/records.ts";
import { textTargets } from "./targets/texts.ts";

/** Everything that decodes what others wrote. */
export async function allTargets(): Promise<FuzzTarget[]> {
  return [
    ...(await recordTargets()),
    ...objectTargets(),
    ...nbdClientTargets(),
    ...nbdServerTargets(),
    ...(await textTargets()),
    ...(await lineTargets()),
  ];
}

/** What one input had a target do. */
export interface CaseOutcome {
  /** What is wrong; undefined when all is well. */
  readonly finding: string | undefined;
  /** Whether the input was taken for right. */
  readonly accepted: boolean;
  readonly ms: number;
  readonly allocated: number;
}

/** The input of a case: the same for the same numbers. */
export function inputOf(target: FuzzTarget, seed: number, number: number): Buffer {
  const random = caseRandom(seed, number);
  const { seeds } = target;
  const from = seeds[random(seeds.length)]!;
  return Buffer.from(target.mutate(random, from, seeds));
}

function caseRandom(seed: number, number: number): Random {
  return seeded((Math.imul(seed, 0x9e3779b1) + Math.imul(number + 1, 0x85ebca6b)) >>> 0);
}

/** @param seed also decides how a stream is cut. */
export async function runCase(
  target: FuzzTarget,
  input: Buffer,
  seed: number,
  allocations: Allocations,
): Promise<CaseOutcome> {
  allocations.reset();
  const startedMs = performance.now();
  let finding: string | undefined;
  let accepted = false;
  try {
    await target.decode(input, seeded(seed));
    accepted = true;
  } catch (error) {
    if (!(error instanceof AppError)) {
      finding = error instanceof Error ? (error.stack ?? error.message) : `thrown: ${String(error)}`;
    } else if (error.kind === "bug") finding = `a bug by its own word: ${error.code} ${error.message}`;
  }
  const allocated = allocations.total;
  if (allocated > target.allocatesMax) {
    finding ??= `${allocated} bytes were allocated, ${allocations.largest} of them at once; ${target.allocatesMax} are declared`;
  }
  return { finding, accepted, ms: performance.now() - startedMs, allocated };
}
