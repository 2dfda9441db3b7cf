import { hostname } from "node:os";
import { join } from "node:path";
import { Command } from "commander";
import { Agent, type AgentListener } from "../../agent/agent.ts";
import { AgentMetrics, replaceFile } from "../../agent/metrics.ts";
import { MetricsServer, parseMetricsAddress } from "../../agent/metrics-server.ts";
import { AgentNotes } from "../../agent/notes.ts";
import { NOTIFY_VARIABLES, ServiceManager } from "../../agent/notify.ts";
import { AppError, messageOf } from "../../errors.ts";
import { loadJobFile } from "../../jobs/job-file.ts";
import { passwordVariables, type Runner } from "../../jobs/job.ts";
import type { JobFile } from "../../jobs/schema.ts";
import { parseSpan } from "../../jobs/span.ts";
import { jobFilePath, notesLocation, pricesPath, queueUrl, repositorySettings } from "../../settings.ts";
import { isBilled, readPrices, type Prices } from "../../store/prices.ts";
import { action, type CliContext } from "../action.ts";
import { isGone, packageVersion, thisProcess } from "../process.ts";
import { allowanceWish, workerThreads, type RepositoryFlags } from "../session.ts";

const CONCURRENCY_MAX = 64;

interface Flags extends RepositoryFlags {
  readonly config?: string;
  readonly queue?: string;
  readonly concurrency: string;
  readonly drain: string;
  readonly metrics?: string;
  readonly metricsFile?: string;
  readonly notes?: string;
}

export function agentCommand(): Command {
  return new Command("agent")
    .summary("take orders from a queue of SQS, and back up what they ask for")
    .description(
      `Waits for orders in a queue and backs up the sources that they name, by the jobs of a file, until it is told to stop.
An order that comes twice, or after its work was done, does nothing. What fails comes again later, and in the end where the
queue puts what failed too often.

SIGTERM: it takes nothing more, lets runs end for as long as --drain says, then undoes them and gives their orders back.`,
    )
    .option(
      "--config <FILE>",
      "file of the jobs (default: BLOCKHAUL_CONFIG, or /etc/blockhaul/blockhaul.yaml)",
    )
    .option("--queue <URL>", "the queue, by its URL or its name in the file (or BLOCKHAUL_QUEUE_URL)")
    .option("--concurrency <N>", "runs at once", "1")
    .option("--drain <SPAN>", "how long runs may go on when it is told to stop: 90s, 10min, 2h", "10min")
    .option("--metrics <ADDRESS>", "serve metrics for Prometheus to this machine, as at 127.0.0.1:9477")
    .option("--metrics-file <FILE>", "write them to a file, for the node exporter's textfile collector")
    .option("--notes <LOCATION>", "leave notes for the watch, as s3://BUCKET/PREFIX (or BLOCKHAUL_NOTES)")
    .addHelpText(
      "after",
      `
Examples:
  blockhaul agent --queue https://sqs.eu-central-1.amazonaws.com/123456789012/host-7.fifo
  blockhaul agent --config blockhaul.yaml --queue host-7 --concurrency 2 --metrics 127.0.0.1:9477`,
    )
    .action(
      action(async (cli, command) => {
        await serve(command.optsWithGlobals<Flags>(), cli);
      }),
    );
}

async function serve(flags: Flags, cli: CliContext): Promise<void> {
  const { output, run } = cli;
  const concurrency = parseConcurrency(flags.concurrency);
  const drainMs = flags.drain === "0" ? 0 : parseSpan(flags.drain);
  const address = flags.metrics === undefined ? undefined : parseMetricsAddress(flags.metrics);
  const file = await loadJobFile(jobFilePath(flags.config, process.env), process.env);
  const url = queueUrl(flags.queue, file.queues ?? {}, process.env);
  const manager = new ServiceManager({ ...process.env }, (message) => output.warn(message));
  const runner = runnerOf(flags, file, concurrency);
  const metrics = await AgentMetrics.load(
    join(cacheDirOf(flags, runner), "agent.json"),
    await pricesOf(file),
  );
  const publish = publisherOf(metrics, flags.metricsFile, cli);
  const server =
    address === undefined ? undefined : await MetricsServer.listen(address, () => metrics.text());
  if (server !== undefined)
    output.info(`Metrics are at http://${flags.metrics!.replace(/:0$/, `:${server.port}`)}/metrics`);
  const { WorkQueue } = await import("../../queue/queue.ts"); // with its SDK: 50 ms that no other command should take
  const queue = new WorkQueue(url, process.env);
  const place = notesLocation(flags.notes, process.env);
  const notes =
    place === undefined ? undefined : new AgentNotes(place, hostname(), (message) => output.warn(message));
  const listener = listenerOf({ metrics, publish, manager, notes }, cli);
  run.signal.addEventListener("abort", () => void manager.stopping(), { once: true });
  try {
    await new Agent({ queue, file, runner, concurrency, drainMs, listener }).run(run.signal);
  } finally {
    await notes?.settled();
    manager.end();
    queue.close();
    server?.close();
  }
}

function parseConcurrency(text: string): number {
  const count = /^\d{1,3}$/.test(text) ? Number(text) : 0;
  if (count >= 1 && count <= CONCURRENCY_MAX) return count;
  const message = `--concurrency takes 1 to ${CONCURRENCY_MAX}, not "${text}"`;
  throw new AppError("usage", "E_FLAG", message);
}

/** Neither passwords nor what is between systemd and us is for programs that are started from now on. */
function runnerOf(flags: Flags, file: JobFile, concurrency: number): Runner {
  const environment = { ...process.env };
  for (const variable of NOTIFY_VARIABLES) Reflect.deleteProperty(environment, variable);
  for (const variable of [...passwordVariables(file), ...NOTIFY_VARIABLES]) {
    Reflect.deleteProperty(process.env, variable);
  }
  return {
    environment,
    holder: thisProcess(),
    isGone,
    writer: `blockhaul ${packageVersion()}`,
    peakRssBytes: () => process.resourceUsage().maxRSS * 1024,
    threads: Math.max(1, Math.floor(workerThreads() / concurrency)),
    allowance: allowanceWish(flags),
    cacheDir: flags.cacheDir,
  };
}

function cacheDirOf({ cacheDir }: Flags, { environment }: Runner): string {
  return repositorySettings({ repository: "unused", ...(cacheDir && { cacheDir }) }, environment).cacheDir;
}

async function pricesOf({ prices, repositories }: JobFile): Promise<Prices | undefined> {
  if (!Object.values(repositories).some(({ url }) => isBilled(url))) return undefined;
  return await readPrices(prices ?? pricesPath(process.env));
}

/** Writes the metrics' file, one time after the other; the metrics are no reason to fail. */
function publisherOf(metrics: AgentMetrics, path: string | undefined, { output }: CliContext): () => void {
  let writing: Promise<void> = Promise.resolve();
  if (path === undefined) return () => undefined;
  return () => {
    writing = writing
      .then(() => replaceFile(path, metrics.text()))
      .catch((error: unknown) =>
        output.warn(`The metrics could not be written to ${path}: ${messageOf(error)}`),
      );
  };
}

interface Hearers {
  readonly metrics: AgentMetrics;
  readonly publish: () => void;
  readonly manager: ServiceManager;
  readonly notes: AgentNotes | undefined;
}

function listenerOf({ metrics, publish, manager, notes }: Hearers, { output }: CliContext): AgentListener {
  return {
    warn: (message) => output.warn(message),
    info: (message) => output.info(message),
    backup: () => undefined,
    verify: () => undefined,
    ready: () => {
      metrics.listening(true);
      publish();
      notes?.queue(undefined);
      output.info("Waiting for orders");
      void manager.ready();
    },
    queue: (trouble) => {
      metrics.listening(trouble === undefined);
      publish();
      notes?.queue(trouble);
      if (trouble === undefined) output.info("The queue answers again");
      else output.warn(messageOf(trouble));
      void manager.status(trouble === undefined ? "Waiting for orders" : `No orders: ${messageOf(trouble)}`);
    },
    began: ({ job, source }) => {
      metrics.began();
      publish();
      output.info(`${source}: backup for job ${job} begins`);
    },
    refused: ({ id }, error) => {
      notes?.refused(error);
      output.warn(`Message ${id}: ${messageOf(error)}`);
    },
    ended: (order, result) => {
      notes?.ended(order, result);
      void metrics
        .ended(order, result)
        .catch((error: unknown) => output.warn(`The metrics could not be kept: ${messageOf(error)}`))
        .finally(publish);
      const { source } = order;
      if (result.kind === "already")
        output.info(`${source}: generation ${result.generation} is what was asked for`);
      else if (result.kind === "done") {
        output.info(`${source}: generation ${result.outcome.report!.manifest.generation} is stored`);
        if (result.outcome.failure !== undefined) output.error(result.outcome.failure.error);
      } else output.error(result.error);
    },
  };
}
