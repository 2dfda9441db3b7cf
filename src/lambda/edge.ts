import { availableParallelism } from "node:os";
import { AppError, messageOf } from "../errors.ts";
import { parseJobFile, loadJobFile, jobFileError } from "../jobs/job-file.ts";
import type { Environment } from "../jobs/interpolate.ts";
import type { Runner } from "../jobs/job.ts";
import type { JobFile } from "../jobs/schema.ts";
import { openStore } from "../store/open.ts";

/** What Lambda tells a handler of its invocation. */
export interface LambdaContext {
  readonly functionName: string;
  readonly awsRequestId: string;
  getRemainingTimeInMillis(): number;
}

/** Bytes of a file of jobs. */
const CONFIG_SIZE_MAX = 1024 * 1024;

/** The one place that Lambda lets us write to. */
const CACHE_DIR = "/tmp/blockhaul";

/** Set by the bundler. */
declare const BLOCKHAUL_VERSION: string;

function version(): string {
  return typeof BLOCKHAUL_VERSION === "undefined" ? "from source" : BLOCKHAUL_VERSION;
}

/** A variable that has to be set. @throws AppError E_ENVIRONMENT (usage). */
export function required(environment: Environment, variable: string): string {
  const value = environment[variable];
  if (value !== undefined && value !== "") return value;
  const message = `The function's environment has no ${variable}; see deploy/lambda/README.md`;
  throw new AppError("usage", "E_ENVIRONMENT", message, { variable });
}

/** A variable that may be left out, or empty. */
export function optional(environment: Environment, variable: string): string | undefined {
  const value = environment[variable];
  return value === "" ? undefined : value;
}

/**
 * The jobs that `BLOCKHAUL_CONFIG` names: a path, or s3://BUCKET/KEY.
 *
 * Functions run no hooks: those are programs of the hosts.
 *
 * @throws AppError E_ENVIRONMENT, E_NO_JOB_FILE, E_JOB_FILE (usage), those of the store.
 */
export async function loadJobs(environment: Environment, signal: AbortSignal): Promise<JobFile> {
  const place = required(environment, "BLOCKHAUL_CONFIG");
  const file = place.startsWith("s3://")
    ? await fetchJobFile(place, environment, signal)
    : await loadJobFile(place, environment);
  const jobs = Object.entries(file.jobs).map(([name, job]) => [name, { ...job, hooks: undefined }]);
  return { ...file, jobs: Object.fromEntries(jobs) as JobFile["jobs"] };
}

async function fetchJobFile(place: string, environment: Environment, signal: AbortSignal): Promise<JobFile> {
  const [, folder = "", key = "", query = ""] = /^(s3:\/\/[^?]*?)\/([^/?]+)(\?.*)?$/.exec(place) ?? [];
  const store = await openStore(folder + query);
  try {
    const text = await store.get(key, CONFIG_SIZE_MAX, signal);
    const { file, problems } = parseJobFile(text.toString("utf8"), environment);
    if (file === undefined) throw jobFileError(place, problems);
    return file;
  } catch (error) {
    if (error instanceof AppError && error.kind === "notFound") {
      const message = `The jobs in ${place} cannot be read: ${messageOf(error)}`;
      throw new AppError("usage", "E_NO_JOB_FILE", message, { path: place }, error);
    }
    throw error;
  } finally {
    store.close();
  }
}

/** Who runs jobs in this function. */
export function functionRunner(environment: Environment, { functionName }: LambdaContext): Runner {
  const instance = environment["AWS_LAMBDA_LOG_STREAM_NAME"] ?? "local";
  return {
    environment,
    holder: { host: `${functionName} ${instance}`.slice(0, 1000), pid: process.pid },
    isGone: () => false, // nothing is known of other instances
    writer: `blockhaul ${version()}`,
    peakRssBytes: () => process.resourceUsage().maxRSS * 1024,
    threads: availableParallelism(),
    cacheDir: optional(environment, "BLOCKHAUL_CACHE_DIR") ?? CACHE_DIR,
  };
}
