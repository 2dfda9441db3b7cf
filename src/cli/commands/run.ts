import { Command } from "commander";
import { formatSize } from "../../bytes/size.ts";
import type { DryRun } from "../../backup/request.ts";
import { AppError } from "../../errors.ts";
import { jobFileError, loadJobFile, parseJobFile, readText } from "../../jobs/job-file.ts";
import { jobsOf, passwordVariables, withJob, type Job, type Runner } from "../../jobs/job.ts";
import { Rota } from "../../jobs/rota.ts";
import { runJob, upkeepOf, type JobListener, type JobOutcome } from "../../jobs/run-job.ts";
import { dryRunSource } from "../../jobs/run-source.ts";
import { jobFileJsonSchema, type JobFile } from "../../jobs/schema.ts";
import type { UpkeepStep } from "../../jobs/upkeep.ts";
import { jobFilePath } from "../../settings.ts";
import { action, type CliContext } from "../action.ts";
import { worstExitCode } from "../exit-codes.ts";
import { jobsDocument, jobsText } from "../job-text.ts";
import { table } from "../output.ts";
import { isGone, packageVersion, thisProcess } from "../process.ts";
import { Progress } from "../progress.ts";
import { allowanceWish, workerThreads, type RepositoryFlags } from "../session.ts";

interface Flags extends RepositoryFlags {
  readonly config?: string;
  readonly check?: boolean;
  readonly schema?: boolean;
  readonly dryRun?: boolean;
}

export function runCommand(): Command {
  return new Command("run")
    .summary("run jobs of a blockhaul.yaml: backups, retention, prune and verify")
    .description(
      `Runs jobs of a file here, one after the other: for each source its backup, and then the forgetting that the job's rules
ask for; at the end a prune and a verify, when they are due.

What fails does not stop the rest; the exit code is that of the worst. Commands before and after are the job's hooks.`,
    )
    .argument("[jobs...]", "these jobs only (default: all)")
    .option(
      "--config <FILE>",
      "file of the jobs (default: BLOCKHAUL_CONFIG, or /etc/blockhaul/blockhaul.yaml)",
    )
    .option("--check", "only check the file, and tell all that is wrong with it")
    .option("--schema", "print the file's JSON schema, for editors")
    .option("--dry-run", "say what would be done; write nothing, run no hooks")
    .addHelpText(
      "after",
      `
Examples:
  blockhaul run --check --config blockhaul.yaml
  blockhaul run --quiet --strict
  blockhaul run nightly --dry-run`,
    )
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        if (flags.schema === true) {
          const schema = jobFileJsonSchema();
          cli.output.result(schema, () => JSON.stringify(schema, undefined, 2));
          return;
        }
        const path = jobFilePath(flags.config, process.env);
        if (flags.check === true) {
          await check(path, cli);
          return;
        }
        const file = await loadJobFile(path, process.env);
        const jobs = jobsOf(file, command.args);
        warnOfUncovered(file, cli);
        const runner = runnerOf(flags, file);
        if (flags.dryRun === true) await dryRun(jobs, runner, cli);
        else await run(jobs, runner, cli);
      }),
    );
}

async function check(path: string, { output }: CliContext): Promise<void> {
  const { file, problems } = parseJobFile(await readText(path), process.env);
  if (file === undefined) {
    if (!output.json) throw jobFileError(path, problems);
    output.result({ file: path, problems }, () => "");
    process.exitCode = worstExitCode([jobFileError(path, problems)]);
    return;
  }
  warnOfUncovered(file, { output });
  const counts = [
    [file.repositories, "repositories"],
    [file.sources, "sources"],
    [file.jobs, "jobs"],
  ] as const;
  const found = counts.map(([map, what]) => `${what}: ${Object.keys(map).join(", ") || "none"}`);
  output.result({ file: path, problems }, () => `${path} is right; ${found.join("; ")}`);
}

function warnOfUncovered({ sources, jobs }: JobFile, { output }: Pick<CliContext, "output">): void {
  const covered = new Set(Object.values(jobs).flatMap((job) => job.sources));
  for (const source of Object.keys(sources)) {
    if (!covered.has(source)) output.warn(`Source ${source} is in no job: nothing backs it up`);
  }
}

function runnerOf(flags: Flags, file: JobFile): Runner {
  const environment = { ...process.env };
  // eslint-disable-next-line @typescript-eslint/no-dynamic-delete -- programs that are started from now on need not have it
  for (const variable of passwordVariables(file)) delete process.env[variable];
  return {
    environment,
    holder: thisProcess(),
    isGone,
    writer: `blockhaul ${packageVersion()}`,
    peakRssBytes: () => process.resourceUsage().maxRSS * 1024,
    threads: workerThreads(),
    allowance: allowanceWish(flags),
    cacheDir: flags.cacheDir,
  };
}

async function run(jobs: readonly Job[], runner: Runner, cli: CliContext): Promise<void> {
  const { output, run } = cli;
  const outcomes: JobOutcome[] = [];
  const progress = new Progress(output);
  const observer = listener(progress, cli);
  for (const job of jobs) {
    if (run.signal.aborted) break;
    const outcome = await runJob(job, runner, { signal: run.signal, observer });
    progress.end();
    if (outcome.error !== undefined) output.error(outcome.error);
    outcomes.push(outcome);
  }
  output.result(jobsDocument(outcomes), () => jobsText(outcomes));
  const errors = outcomes.flatMap(({ sources, upkeep, error }) => [
    ...sources.map(({ failure }) => failure?.error),
    ...upkeep.map((one) => one.error),
    error,
  ]);
  if (run.signal.aborted) errors.push(run.signal.reason);
  const code = worstExitCode(errors.filter((error) => error !== undefined));
  if (code !== 0) process.exitCode = code;
}

function listener(progress: Progress, { output }: CliContext): JobListener {
  return {
    warn: (message) => output.warn(message),
    info: (message) => output.info(message),
    backup: (source, { disk, position, size }) =>
      progress.update({ label: `${source} ${disk}`, done: position, total: size, note: "" }),
    verify: (done, total) => progress.update({ label: "packs", done, total, note: "" }),
    source: ({ failure }) => {
      progress.end();
      if (failure !== undefined) output.error(failure.error);
    },
    upkeep: ({ error }) => {
      progress.end();
      if (error !== undefined) output.error(error);
    },
  };
}

/** What a job would do. */
interface Foretold {
  readonly job: string;
  readonly sources: readonly {
    readonly source: string;
    readonly disks: readonly DryRun[];
    readonly error: unknown;
  }[];
  readonly upkeep: readonly UpkeepStep[];
}

async function dryRun(jobs: readonly Job[], runner: Runner, cli: CliContext): Promise<void> {
  const { output, run } = cli;
  const { signal } = run;
  const observer = listener(new Progress(output), cli);
  const errors: unknown[] = [];
  const foretold: Foretold[] = [];
  for (const job of jobs) {
    signal.throwIfAborted();
    const told = await withJob(job, runner, signal, async (open): Promise<Foretold> => {
      const sources: Foretold["sources"][number][] = [];
      for (const source of job.entry.sources) {
        try {
          sources.push({
            source,
            disks: await dryRunSource(open, source, { signal, observer }),
            error: undefined,
          });
        } catch (error) {
          signal.throwIfAborted();
          output.error(error);
          errors.push(error);
          sources.push({ source, disks: [], error });
        }
      }
      const due: UpkeepStep[] = [];
      for (const step of upkeepOf(job)) {
        if (await new Rota(open).isDue(step, job.entry[step]?.every)) due.push(step);
      }
      return { job: job.name, sources, upkeep: due };
    });
    foretold.push(told);
  }
  const document = foretold.map(({ job, sources, upkeep }) => ({
    job,
    sources: sources.map(({ source, disks }) => ({ source, disks })),
    upkeep,
  }));
  output.result({ dryRun: true, jobs: document }, () => dryText(foretold));
  const code = worstExitCode(errors);
  if (code !== 0) process.exitCode = code;
}

function dryText(foretold: readonly Foretold[]): string {
  const rows = foretold.flatMap(({ job, sources, upkeep }) => [
    ...sources.flatMap(({ source, disks, error }) =>
      error === undefined
        ? disks.map(({ name, kind, reason, size }) => [
            job,
            source,
            name,
            `${kind} of ${formatSize(size)}: ${reason}`,
          ])
        : [[job, source, "", `failed${error instanceof AppError ? `: ${error.message}` : ""}`]],
    ),
    ...upkeep.map((step) => [job, `(${step})`, "", "due"]),
  ]);
  return table(["JOB", "SOURCE", "DISK", ""], rows);
}
