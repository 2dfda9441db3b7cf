import pLimit from "p-limit";
import { z } from "zod";
import { AppError } from "../errors.ts";
import type { Environment } from "../jobs/interpolate.ts";
import { jobsOf } from "../jobs/job.ts";
import type { JobFile } from "../jobs/schema.ts";
import { outgoing, type BackupOrder } from "../queue/orders.ts";
import { WorkQueue } from "../queue/queue.ts";
import { Deadline } from "./deadline.ts";
import { loadJobs, required, type LambdaContext } from "./edge.ts";
import { Log } from "./log.ts";
import { noteFailure, noting } from "./notes.ts";

const moment = z.iso.datetime({ offset: true });

/** What a schedule sends: ours, or what EventBridge sends by itself. */
const eventSchema = z.union([
  z.strictObject({
    /** Undefined: all. */
    job: z.string().max(128).optional(),
    scheduledAt: moment.optional(),
  }),
  z
    .object({ source: z.literal("aws.events"), time: moment })
    .transform(({ time }) => ({ job: undefined, scheduledAt: time })),
]);

/** Queues that are sent to at once. */
const AT_ONCE = 16;

/**
 * Sends an order to back up each source of a job, or of all, to the queue that the source names, or else to its own. A
 * schedule that fires twice, or is tried again, asks for the same: the queue keeps only one such message, and whoever
 * takes two does the work once. So where one queue is gone the others get theirs.
 */
export async function handler(event: unknown, context: LambdaContext): Promise<{ readonly orders: number }> {
  const environment = process.env;
  const log = new Log(context);
  using deadline = new Deadline(context);
  const { signal } = deadline;
  const parsed = eventSchema.safeParse(event);
  if (!parsed.success) {
    const message =
      'The event is none of a schedule: write {"job": "NAME", "scheduledAt": "2026-11-24T01:17:00Z"}';
    const error = new AppError("usage", "E_EVENT", message, {}, parsed.error);
    log.error(error);
    await noteFailure({ by: "dispatch", job: "", source: "" }, error, environment, log);
    throw error;
  }
  const { job, scheduledAt = new Date().toISOString() } = parsed.data;
  return await noting(
    { by: "dispatch", job: job ?? "", source: "" },
    { environment, deadline, log },
    async () => {
      const file = await loadJobs(environment, signal);
      const orders = ordersOf(file, job, scheduledAt);
      const byQueue = Map.groupBy(orders, ({ source }) => urlOf(source, file, environment));
      const limit = pLimit(AT_ONCE);
      const sending = [...byQueue].map(([url, some]) => limit(() => sendAll(url, some, environment, signal)));
      const failed = (await Promise.allSettled(sending)).filter((one) => one.status === "rejected");
      for (const { reason } of failed.slice(1)) log.error(reason, { job });
      if (failed[0] !== undefined) throw failed[0].reason as Error;
      log.info("Orders sent", { job, scheduledAt, orders: orders.length, queues: byQueue.size });
      return { value: { orders: orders.length }, failure: undefined };
    },
  ).catch((error: unknown) => {
    log.error(error, { job });
    throw error;
  });
}

function urlOf(source: string, { sources, queues = {} }: JobFile, environment: Environment): string {
  const name = sources[source]!.queue;
  return name === undefined ? required(environment, "BLOCKHAUL_QUEUE_URL") : queues[name]!;
}

async function sendAll(
  url: string,
  orders: readonly BackupOrder[],
  environment: Environment,
  signal: AbortSignal,
): Promise<void> {
  const queue = new WorkQueue(url, environment);
  try {
    await queue.send(orders.map(outgoing), signal);
  } finally {
    queue.close();
  }
}

/** One for each source of the job. @throws AppError E_NO_JOB (usage). */
export function ordersOf(file: JobFile, job: string | undefined, scheduledAt: string): BackupOrder[] {
  return jobsOf(file, job === undefined ? [] : [job]).flatMap(({ name, entry }) =>
    entry.sources.map((source): BackupOrder => ({ order: "backup", job: name, source, scheduledAt })),
  );
}
