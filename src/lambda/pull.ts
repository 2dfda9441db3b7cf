import { fulfil } from "../agent/fulfil.ts";
import { AppError } from "../errors.ts";
import type { JobFile } from "../jobs/schema.ts";
import { outgoing, parseBackupOrder, type BackupOrder } from "../queue/orders.ts";
import { isImageSource, isLibvirtSource, isQmpSource } from "../settings.ts";
import { isDeadline } from "./deadline.ts";
import { eachOrder, type OrderTools } from "./each-order.ts";
import type { LambdaContext } from "./edge.ts";
import { logObserver } from "./log.ts";
import { nextSlice, refuseIdle } from "./slices.ts";
import type { BatchResponse } from "./sqs-event.ts";

/**
 * Backs up sources that this function reaches by itself (nbds://). A backup that does not fit into one invocation stops in
 * time and commits nothing; what it stored is listed, so that the continuation which it sends finds it there and goes on
 * from where new data begins.
 */
export async function handler(event: unknown, context: LambdaContext): Promise<BatchResponse> {
  const pulling = { by: "pull", queueVariable: "BLOCKHAUL_QUEUE_URL", parse: parseBackupOrder, work: pull };
  return await eachOrder(pulling, event, context);
}

/** @throws why the order is neither done nor continued. */
async function pull(order: BackupOrder, tools: OrderTools): Promise<void> {
  const { file, runner, deadline, log } = tools;
  const { job, source } = order;
  refuseIdle(order.continued, `The backup of ${source}`);
  refuseLocal(source, file);
  const positions = new Map<string, number>();
  const observer = logObserver(log, {
    backup: (_, { disk, position }) => void positions.set(disk, position),
  });
  const { signal } = deadline;
  const result = await fulfil(order, file, runner, { signal, observer });
  if (result.kind === "done") {
    const { seconds, report, failure } = result.outcome;
    log.info("Backed up", { job, source, seconds, generation: report?.manifest.generation });
    if (failure !== undefined) throw failure.error as Error;
    return;
  }
  if (result.kind === "already") {
    log.info("Backed up before", { job, source, generation: result.generation });
    return;
  }
  if (!isDeadline(result.error)) throw result.error as Error;
  await goOn(
    order,
    positions.values().reduce((sum, position) => sum + position, 0),
    tools,
  );
}

async function goOn(order: BackupOrder, reached: number, { queue, log }: OrderTools): Promise<void> {
  const { job, source, continued } = order;
  const before = continued?.reached ?? 0;
  const next = { ...nextSlice(continued, reached > before), reached: Math.max(reached, before) };
  await queue.send([outgoing({ ...order, continued: next })], AbortSignal.timeout(10_000));
  log.info("Stopped in time; goes on in another invocation", { job, source, ...next });
}

/** A VM is backed up over a socket, with a guard process beside QEMU, and an image is a file: that is their host's work. */
function refuseLocal(source: string, file: JobFile): void {
  const { uri = "", uris = {} } = file.sources[source] ?? {};
  const isLocal = (one: string): boolean => isQmpSource(one) || isLibvirtSource(one) || isImageSource(one);
  if (![uri, ...Object.values(uris)].some(isLocal)) return;
  const message = `${source} can be read on its host alone: let an agent there back it up`;
  throw new AppError("usage", "E_NOT_FROM_HERE", message, { source });
}
