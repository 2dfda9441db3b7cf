import { waitBeforeNext } from "../agent/fulfil.ts";
import type { Runner } from "../jobs/job.ts";
import type { JobFile } from "../jobs/schema.ts";
import { WorkQueue } from "../queue/queue.ts";
import { Deadline } from "./deadline.ts";
import { functionRunner, loadJobs, required, type LambdaContext } from "./edge.ts";
import { Log } from "./log.ts";
import { noteFailure, noting } from "./notes.ts";
import { eachMessage, type BatchResponse, type Settlement, type SqsRecord } from "./sqs-event.ts";

/** What a function works on orders with, for one invocation. */
export interface OrderTools {
  readonly file: JobFile;
  readonly runner: Runner;
  readonly queue: WorkQueue;
  readonly deadline: Deadline;
  readonly log: Log;
}

/** A function whose events are messages of a queue, each an order. */
export interface OrderFunction<Order> {
  /** Its name, for notes. */
  readonly by: string;
  /** The environment variable that has the queue's URL. */
  readonly queueVariable: string;
  readonly parse: (body: string) => Order;
  /** @returns what failed all the same of an order that is over. @throws what should be tried again. */
  work(order: Order, tools: OrderTools): Promise<unknown>;
}

/** Works on each order of an event by itself, and leaves a note of how it ended. */
export async function eachOrder<Order extends { readonly job: string; readonly source?: string }>(
  { by, queueVariable, parse, work }: OrderFunction<Order>,
  event: unknown,
  context: LambdaContext,
): Promise<BatchResponse> {
  const environment = process.env;
  const log = new Log(context);
  using deadline = new Deadline(context);
  const queue = new WorkQueue(required(environment, queueVariable), environment);
  const refused = async (error: unknown): Promise<void> => {
    log.error(error);
    await noteFailure({ by, job: "", source: "" }, error, environment, log);
  };
  try {
    const file = await loadJobs(environment, deadline.signal);
    const runner = functionRunner(environment, context);
    const tools = { file, runner, queue, deadline, log };
    return await eachMessage(event, queue, log, async ({ body, attributes }: SqsRecord) => {
      const again = { againIn: waitBeforeNext(attributes.ApproximateReceiveCount) };
      let order: Order;
      try {
        order = parse(body);
      } catch (error) {
        await refused(error);
        return again;
      }
      const { job, source } = order;
      const about = { environment: runner.environment, deadline, log };
      return await noting<Settlement>({ by, job, source: source ?? "" }, about, async () => {
        try {
          return { value: "done", failure: await work(order, tools) };
        } catch (error) {
          log.error(error, { job, source });
          return { value: again, failure: error };
        }
      });
    });
  } catch (error) {
    await refused(error);
    throw error;
  } finally {
    queue.close();
  }
}
