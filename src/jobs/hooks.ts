import { AppError, messageOf } from "../errors.ts";
import { runShell } from "../flow/shell.ts";
import type { Environment } from "./interpolate.ts";
import type { HooksEntry } from "./schema.ts";

/** How long a hook may take unless the job says otherwise, milliseconds. */
const TIMEOUT_MS = 10 * 60_000;

/** What a failure leads to is still done when the run was stopped, but not for longer than this, milliseconds. */
const ON_FAILURE_STOPPED_MS = 30_000;

export type HookName = "before" | "after" | "on_failure";

/** What a hook is told, by its environment. */
export interface HookFacts {
  readonly job: string;
  /** Empty when it is not about a source but about a job's upkeep. */
  readonly source: string;
  /** "backup", "forget", "prune": what is about to begin, or what failed. */
  readonly step: string;
  readonly generation: string | undefined;
  readonly error: unknown;
}

/** Runs a job's hooks by `sh`; they have no input, and what they print goes to stderr. */
export class Hooks {
  readonly #entry: HooksEntry;
  readonly #environment: Environment;

  /** @param environment without anybody's password. */
  constructor(entry: HooksEntry | undefined, environment: Environment) {
    this.#entry = entry ?? {};
    this.#environment = environment;
  }

  /** @throws AppError E_HOOK (source): it failed, or took too long; the signal's reason. */
  async run(hook: HookName, facts: HookFacts, signal: AbortSignal): Promise<void> {
    const line = this.#entry[hook];
    if (line === undefined) return;
    const stopped = hook === "on_failure" && signal.aborted;
    const command = {
      line,
      environment: { ...this.#environment, ...variables(hook, facts) },
      timeoutMs: stopped ? ON_FAILURE_STOPPED_MS : (this.#entry.timeout ?? TIMEOUT_MS),
      outputMax: 0,
    };
    const until = stopped ? AbortSignal.timeout(2 * ON_FAILURE_STOPPED_MS) : signal;
    const { failure, cause } = await runShell(command, until);
    if (failure === undefined) return;
    const whose = facts.source === "" ? "" : ` of ${facts.source}`;
    const message = `The hook ${hook} of job ${facts.job}${whose} ${failure}`;
    throw new AppError("source", "E_HOOK", message, { job: facts.job, hook }, cause);
  }
}

function variables(hook: HookName, { job, source, step, generation, error }: HookFacts): Environment {
  return {
    BLOCKHAUL_JOB: job,
    BLOCKHAUL_SOURCE: source,
    BLOCKHAUL_STEP: step,
    BLOCKHAUL_RESULT: hook === "before" ? "" : error === undefined ? "done" : "failed",
    BLOCKHAUL_GENERATION: generation ?? "",
    BLOCKHAUL_ERROR: error === undefined ? "" : messageOf(error),
    BLOCKHAUL_ERROR_CODE: error instanceof AppError ? error.code : "",
  };
}
