import { waitBeforeNext } from "../agent/fulfil.ts";
import { AppError } from "../errors.ts";
import type { Runner } from "../jobs/job.ts";
import type { JobFile } from "../jobs/schema.ts";
import { outgoing, parseUpkeepOrder, type UpkeepOrder } from "../queue/orders.ts";
import { WorkQueue } from "../queue/queue.ts";
import { Deadline } from "./deadline.ts";
import { functionRunner, loadJobs, required, type LambdaContext } from "./edge.ts";
import { Log, logObserver } from "./log.ts";
import { noteFailure, noting } from "./notes.ts";
import { refuseIdle } from "./slices.ts";
import { eachMessage, type BatchResponse, type Settlement, type SqsRecord } from "./sqs-event.ts";
import { upkeepSlice } from "./upkeep-slice.ts";

/**
 * Looks after the repositories of jobs, near the bucket: forget, prune and verify as the job says, or what the order says.
 * What does not fit into one invocation goes on in the next, through the queue, until it is done.
 */
export async function handler(event: unknown, context: LambdaContext): Promise<BatchResponse> {
  const environment = process.env;
  const log = new Log(context);
  using deadline = new Deadline(context);
  const queue = new WorkQueue(required(environment, "BLOCKHAUL_MAINTAIN_QUEUE_URL"), environment);
  try {
    const file = await loadJobs(environment, deadline.signal);
    const upkeep = new Upkeep(file, functionRunner(environment, context), queue, deadline, log);
    return await eachMessage(event, queue, log, (record) => upkeep.message(record));
  } catch (error) {
    log.error(error);
    await noteFailure({ by: "maintain", job: "", source: "" }, error, environment, log);
    throw error;
  } finally {
    queue.close();
  }
}

class Upkeep {
  readonly #file: JobFile;
  readonly #runner: Runner;
  readonly #queue: WorkQueue;
  readonly #deadline: Deadline;
  readonly #log: Log;

  constructor(file: JobFile, runner: Runner, queue: WorkQueue, deadline: Deadline, log: Log) {
    this.#file = file;
    this.#runner = runner;
    this.#queue = queue;
    this.#deadline = deadline;
    this.#log = log;
  }

  async message({ body, attributes }: SqsRecord): Promise<Settlement> {
    const { environment } = this.#runner;
    const again = { againIn: waitBeforeNext(attributes.ApproximateReceiveCount) };
    let order: UpkeepOrder;
    try {
      order = parseUpkeepOrder(body);
    } catch (error) {
      this.#log.error(error);
      await noteFailure({ by: "maintain", job: "", source: "" }, error, environment, this.#log);
      return again;
    }
    const { job } = order;
    const context = { environment, deadline: this.#deadline, log: this.#log };
    return await noting<Settlement>({ by: "maintain", job, source: "" }, context, async () => {
      try {
        return { value: "done", failure: await this.#slice(order) };
      } catch (error) {
        this.#log.error(error, { job });
        return { value: again, failure: error };
      }
    });
  }

  /** @returns what failed of the steps that are over. @throws what should be tried again. */
  async #slice(order: UpkeepOrder): Promise<unknown> {
    const { job } = order;
    refuseIdle(order.continued, `The upkeep of job ${job}`);
    const { signal } = this.#deadline;
    const observer = logObserver(this.#log);
    const { next, failures } = await upkeepSlice(order, this.#file, this.#runner, { signal, observer });
    for (const { step, error } of failures) this.#log.error(error, { job, step });
    if (next === undefined) {
      this.#log.info("Upkeep is done", { job, slices: (order.continued?.slices ?? 0) + 1 });
    } else {
      await this.#queue.send([outgoing(next)], AbortSignal.timeout(10_000));
      this.#log.info("Stopped in time; goes on in another invocation", { job, ...next.continued });
    }
    if (failures[0] !== undefined) return failures[0].error;
    const failed = order.continued?.failed ?? [];
    if (failed.length === 0) return undefined;
    const message = `An earlier part of the upkeep failed: ${failed.join(", ")}; its log has the reason`;
    return new AppError("corrupt", "E_UPKEEP", message, { job });
  }
}
