import type { Repository } from "../repository/config.ts";
import type { PinLookup } from "../repository/pins.ts";
import { forget } from "./forget.ts";
import type { SourcePlan } from "./plan-forget.ts";
import { NEWEST_REASON } from "./retention.ts";

/** Who hears, in sentences, of what came otherwise than planned. */
export interface ForgetListener {
  warn(message: string): void;
  info(message: string): void;
}

/** Forgets what the plans say, source by source. @returns what became of each. @throws as `forget`. */
export async function forgetAll(
  repository: Repository,
  planned: readonly SourcePlan[],
  lookup: PinLookup,
  listener: ForgetListener,
  run: AbortController,
): Promise<SourcePlan[]> {
  const done: SourcePlan[] = [];
  for (const plan of planned) {
    const result = await forget(repository, plan, lookup, run);
    const wanted = new Set(plan.remove.map(({ generation }) => generation));
    for (const { generation, reasons } of result.keep.filter((one) => wanted.has(one.generation))) {
      listener.warn(
        `Generation ${generation} of ${plan.source} stays, since a moment ago: ${reasons.join(", ")}`,
      );
    }
    for (const { generation, reasons } of result.remove.filter((one) =>
      one.reasons.includes(NEWEST_REASON),
    )) {
      listener.info(
        `${generation} was the ${reasons.at(-1)!}: the next backup of ${plan.source} may read more`,
      );
    }
    done.push(result);
  }
  return done;
}
