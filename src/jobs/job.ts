import { AppError } from "../errors.ts";
import type { Password } from "../repository/key-slots.ts";
import type { LeaseHolder } from "../repository/leases.ts";
import { fetchPassword } from "../session/password.ts";
import { withSession, type Access, type Session } from "../session/session.ts";
import { passwordSettings, repositorySettings, type PasswordSettings } from "../settings.ts";
import { makeAllowance, type AllowanceWish } from "../store/allowance.ts";
import type { Environment } from "./interpolate.ts";
import type { JobEntry, JobFile, RepositoryEntry } from "./schema.ts";

/** A job of a file, with the file it stands in. */
export interface Job {
  readonly name: string;
  readonly entry: JobEntry;
  readonly file: JobFile;
}

/** The process that runs jobs; its edge knows. */
export interface Runner {
  readonly environment: Environment;
  /** For leases and records. */
  readonly holder: LeaseHolder;
  readonly isGone: (holder: LeaseHolder) => boolean;
  /** "blockhaul 1.2.3". */
  readonly writer: string;
  /** Of the whole process, bytes. */
  readonly peakRssBytes: () => number;
  /** Worker threads for each job that is open. */
  readonly threads: number;
  /** In place of what the jobs say. */
  readonly allowance?: AllowanceWish | undefined;
  /** Where local advice is kept, instead of where the environment says. */
  readonly cacheDir?: string | undefined;
}

/** A job whose repository is open. */
export interface OpenJob extends Job {
  readonly runner: Runner;
  readonly session: Session;
  /** Aborted when the job's requests are spent. */
  readonly spent: AbortSignal;
}

/**
 * The jobs of these names in the order of the file, or, without names, all of them.
 * @throws AppError E_NO_JOB (usage).
 */
export function jobsOf(file: JobFile, names: readonly string[] = []): Job[] {
  const known = Object.keys(file.jobs);
  const unknown = names.find((name) => !known.includes(name));
  if (unknown !== undefined) {
    const message = `No job is called "${unknown}"; there are ${known.join(", ") || "none"}`;
    throw new AppError("usage", "E_NO_JOB", message, { job: unknown });
  }
  return known
    .filter((name) => names.length === 0 || names.includes(name))
    .map((name) => ({ name, entry: file.jobs[name]!, file }));
}

/**
 * Opens the repository of a job, calls `work`, and closes what it opened, whatever happened.
 *
 * @param signal ends the opening; `work` has its own.
 * @throws AppError those of opening a repository, and of `fetchPassword`.
 */
export async function withJob<T>(
  job: Job,
  runner: Runner,
  signal: AbortSignal,
  work: (job: OpenJob) => Promise<T>,
): Promise<T> {
  const allowance = makeAllowance(allowanceOf(job.entry, runner));
  const spent = allowance?.requests?.spent ?? new AbortController().signal;
  const access = { ...accessOf(job, runner), allowance };
  const until = AbortSignal.any([signal, spent]);
  return await withSession(access, runner.threads, until, (session) =>
    work({ ...job, runner, session, spent }),
  );
}

/** How a job's repository is opened. @throws AppError E_PASSWORD_ENV (credentials), E_PASSWORD_TWICE (usage). */
export function accessOf({ entry, file }: Job, { cacheDir, environment }: Runner): Access {
  const repository = file.repositories[entry.repository]!;
  const flags = { repository: repository.url, ...(cacheDir && { cacheDir }) };
  return {
    settings: repositorySettings(flags, environment),
    password: passwordOf(entry.repository, repository, environment),
  };
}

function allowanceOf(entry: JobEntry, { allowance }: Runner): AllowanceWish {
  return {
    upload: allowance?.upload ?? entry.limit_upload,
    download: allowance?.download ?? entry.limit_download,
    requests: allowance?.requests ?? entry.max_requests,
  };
}

/** Variables that hold passwords: nothing that a job starts has to inherit them. */
export function passwordVariables({ repositories }: JobFile): Set<string> {
  const named = Object.values(repositories).flatMap(({ password_env: variable }) => variable ?? []);
  return new Set(["BLOCKHAUL_PASSWORD", "BLOCKHAUL_NEW_PASSWORD", ...named]);
}

/** What a hook may see of the environment. */
export function withoutPasswords(file: JobFile, environment: Environment): Environment {
  const secret = passwordVariables(file);
  return Object.fromEntries(Object.entries(environment).filter(([variable]) => !secret.has(variable)));
}

/** By the file; where it says nothing, by the environment, as in every other command. Nobody is asked: jobs run alone. */
function passwordOf(name: string, entry: RepositoryEntry, environment: Environment): Password {
  const settings = passwordEntry(name, entry, environment) ?? passwordSettings(environment);
  if (settings === undefined) {
    const origin = `repositories.${name}`;
    return { given: false, origin, read: () => Promise.resolve(undefined) };
  }
  return {
    given: true,
    origin: settings.variable,
    read: (signal) => fetchPassword(settings, environment, signal),
  };
}

/** @throws AppError E_PASSWORD_ENV (credentials). */
function passwordEntry(
  name: string,
  { password_file: file, password_command: command, password_env: variable }: RepositoryEntry,
  environment: Environment,
): PasswordSettings | undefined {
  const at = `repositories.${name}`;
  if (file !== undefined) return { how: "file", variable: `${at}.password_file`, value: file };
  if (command !== undefined) return { how: "command", variable: `${at}.password_command`, value: command };
  if (variable === undefined) return undefined;
  const value = environment[variable];
  if (value !== undefined) return { how: "text", variable, value };
  const message = `${at}: the environment has no ${variable}, which should hold the password`;
  throw new AppError("credentials", "E_PASSWORD_ENV", message, { variable });
}
