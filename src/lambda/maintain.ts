import { AppError } from "../errors.ts";
import { outgoing, parseUpkeepOrder, type UpkeepOrder } from "../queue/orders.ts";
import { eachOrder, type OrderTools } from "./each-order.ts";
import type { LambdaContext } from "./edge.ts";
import { logObserver } from "./log.ts";
import { refuseIdle } from "./slices.ts";
import type { BatchResponse } from "./sqs-event.ts";
import { upkeepSlice } from "./upkeep-slice.ts";

/**
 * Looks after the repositories of jobs, near the bucket: forget, prune and verify as the job says, or what the order says.
 * What does not fit into one invocation goes on in the next, through the queue, until it is done.
 */
export async function handler(event: unknown, context: LambdaContext): Promise<BatchResponse> {
  const queueVariable = "BLOCKHAUL_MAINTAIN_QUEUE_URL";
  const upkeep = { by: "maintain", queueVariable, parse: parseUpkeepOrder, work: slice };
  return await eachOrder(upkeep, event, context);
}

/** @returns what failed of the steps that are over. @throws what should be tried again. */
async function slice(
  order: UpkeepOrder,
  { file, runner, queue, deadline, log }: OrderTools,
): Promise<unknown> {
  const { job } = order;
  refuseIdle(order.continued, `The upkeep of job ${job}`);
  const { signal } = deadline;
  const observer = logObserver(log);
  const { next, failures } = await upkeepSlice(order, file, runner, { signal, observer });
  for (const { step, error } of failures) log.error(error, { job, step });
  if (next === undefined) {
    log.info("Upkeep is done", { job, slices: (order.continued?.slices ?? 0) + 1 });
  } else {
    await queue.send([outgoing(next)], AbortSignal.timeout(10_000));
    log.info("Stopped in time; goes on in another invocation", { job, ...next.continued });
  }
  if (failures[0] !== undefined) return failures[0].error;
  const failed = order.continued?.failed ?? [];
  if (failed.length === 0) return undefined;
  const message = `An earlier part of the upkeep failed: ${failed.join(", ")}; its log has the reason`;
  return new AppError("corrupt", "E_UPKEEP", message, { job });
}
