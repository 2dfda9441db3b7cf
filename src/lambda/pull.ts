import { fulfil, waitBeforeNext } from "../agent/fulfil.ts";
import { AppError } from "../errors.ts";
import type { Runner } from "../jobs/job.ts";
import type { JobFile } from "../jobs/schema.ts";
import { outgoing, parseBackupOrder, type BackupOrder } from "../queue/orders.ts";
import { WorkQueue } from "../queue/queue.ts";
import { isQmpSource } from "../settings.ts";
import { Deadline, isDeadline } from "./deadline.ts";
import { functionRunner, loadJobs, required, type LambdaContext } from "./edge.ts";
import { Log, logObserver } from "./log.ts";
import { noteFailure, noting } from "./notes.ts";
import { nextSlice, refuseIdle } from "./slices.ts";
import { eachMessage, type BatchResponse, type Settlement, type SqsRecord } from "./sqs-event.ts";

/**
 * Backs up sources that this function reaches by itself (nbds://). A backup that does not fit into one invocation stops in
 * time and commits nothing; what it stored is listed, so that the continuation which it sends finds it there and goes on
 * from where new data begins.
 */
export async function handler(event: unknown, context: LambdaContext): Promise<BatchResponse> {
  const environment = process.env;
  const log = new Log(context);
  using deadline = new Deadline(context);
  const queue = new WorkQueue(required(environment, "BLOCKHAUL_QUEUE_URL"), environment);
  try {
    const file = await loadJobs(environment, deadline.signal);
    const pull = new Pull(file, functionRunner(environment, context), queue, deadline, log);
    return await eachMessage(event, queue, log, (record) => pull.message(record));
  } catch (error) {
    log.error(error);
    await noteFailure({ by: "pull", job: "", source: "" }, error, environment, log);
    throw error;
  } finally {
    queue.close();
  }
}

class Pull {
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
    let order: BackupOrder;
    try {
      order = parseBackupOrder(body);
    } catch (error) {
      this.#log.error(error);
      await noteFailure({ by: "pull", job: "", source: "" }, error, environment, this.#log);
      return again;
    }
    const { job, source } = order;
    const context = { environment, deadline: this.#deadline, log: this.#log };
    return await noting<Settlement>({ by: "pull", job, source }, context, async () => {
      const failure = await this.#pull(order).catch((error: unknown) => error);
      if (failure === undefined) return { value: "done", failure };
      this.#log.error(failure, { job, source });
      return { value: again, failure };
    });
  }

  /** @returns why the order is not done, nor continued; undefined when all is well. */
  async #pull(order: BackupOrder): Promise<unknown> {
    const { job, source } = order;
    refuseIdle(order.continued, `The backup of ${source}`);
    refuseVm(source, this.#file);
    const positions = new Map<string, number>();
    const observer = logObserver(this.#log, {
      backup: (_, { disk, position }) => void positions.set(disk, position),
    });
    const { signal } = this.#deadline;
    const result = await fulfil(order, this.#file, this.#runner, { signal, observer });
    if (result.kind === "done") {
      const { seconds, report, failure } = result.outcome;
      this.#log.info("Backed up", { job, source, seconds, generation: report?.manifest.generation });
      return failure?.error;
    }
    if (result.kind === "already") {
      this.#log.info("Backed up before", { job, source, generation: result.generation });
      return undefined;
    }
    if (!isDeadline(result.error)) return result.error;
    await this.#continue(
      order,
      positions.values().reduce((sum, position) => sum + position, 0),
    );
    return undefined;
  }

  async #continue(order: BackupOrder, reached: number): Promise<void> {
    const { job, source, continued } = order;
    const before = continued?.reached ?? 0;
    const next = { ...nextSlice(continued, reached > before), reached: Math.max(reached, before) };
    await this.#queue.send([outgoing({ ...order, continued: next })], AbortSignal.timeout(10_000));
    this.#log.info("Stopped in time; goes on in another invocation", { job, source, ...next });
  }
}

/** A VM is backed up over its monitor's socket, with a guard process beside QEMU: that is its host's work. */
function refuseVm(source: string, file: JobFile): void {
  const uri = file.sources[source]?.uri;
  if (uri === undefined || !isQmpSource(uri)) return;
  const message = `${source} is backed up over the monitor of its QEMU: let an agent on its host do that`;
  throw new AppError("usage", "E_NOT_FROM_HERE", message, { source });
}
