import { availableParallelism } from "node:os";
import { AppError } from "../errors.ts";
import { makeAllowance, parseRate, type AllowanceWish } from "../store/allowance.ts";
import type { Repository } from "../repository/config.ts";
import type { Password } from "../repository/key-slots.ts";
import * as sessions from "../session/session.ts";
import type { Session } from "../session/session.ts";
import { repositorySettings, type RepositorySettings } from "../settings.ts";
import type { ObjectStore } from "../store/store.ts";
import type { CliContext } from "./action.ts";
import { repositoryPassword } from "./password.ts";

const THREADS_MAX = 4;

/** The flags that every command on a repository has. */
export interface RepositoryFlags {
  readonly repository?: string;
  readonly cacheDir?: string;
  readonly limitUpload?: string;
  readonly limitDownload?: string;
  readonly maxRequests?: string;
}

/** Threads that one command works on data with. */
export function workerThreads(): number {
  return Math.min(availableParallelism(), THREADS_MAX);
}

/**
 * Opens the repository the flags name, calls `work`, and closes what it opened, whatever happened.
 *
 * @param password the environment's, or what somebody types, unless another is given.
 */
export async function withRepository<T>(
  flags: RepositoryFlags,
  cli: CliContext,
  work: (repository: Repository, settings: RepositorySettings) => Promise<T>,
  password?: Password,
): Promise<T> {
  const access = accessOf(flags, cli, password);
  return await sessions.withRepository(access, cli.run.signal, (repository) =>
    work(repository, access.settings),
  );
}

/** The store of the repository the flags name, for what needs no password; closed whatever happened. */
export async function withStore<T>(
  flags: RepositoryFlags,
  cli: CliContext,
  work: (store: ObjectStore) => Promise<T>,
): Promise<T> {
  return await sessions.withStore(storeAccess(flags, cli), work);
}

/** As `withRepository`, with threads and a directory cache for work on data. */
export async function withSession<T>(
  flags: RepositoryFlags,
  cli: CliContext,
  work: (session: Session) => Promise<T>,
  password?: Password,
): Promise<T> {
  return await sessions.withSession(accessOf(flags, cli, password), workerThreads(), cli.run.signal, work);
}

function accessOf(flags: RepositoryFlags, cli: CliContext, password: Password | undefined): sessions.Access {
  return { password: password ?? repositoryPassword(), ...storeAccess(flags, cli) };
}

/** The run ends when its requests are spent. */
function storeAccess(flags: RepositoryFlags, { run }: CliContext): sessions.StoreAccess {
  const allowance = makeAllowance(allowanceWish(flags));
  const spent = allowance?.requests?.spent;
  spent?.addEventListener("abort", () => run.abort(spent.reason));
  return { settings: repositorySettings(flags, process.env), allowance };
}

/** @throws AppError E_SIZE, E_RATE, E_FLAG (usage). */
export function allowanceWish({ limitUpload, limitDownload, maxRequests }: RepositoryFlags): AllowanceWish {
  return {
    upload: limitUpload === undefined ? undefined : parseRate(limitUpload),
    download: limitDownload === undefined ? undefined : parseRate(limitDownload),
    requests: maxRequests === undefined ? undefined : parseRequests(maxRequests),
  };
}

function parseRequests(text: string): number {
  const count = /^\d{1,15}$/.test(text) ? Number(text) : 0;
  if (count >= 1) return count;
  const message = `--max-requests takes a whole number of requests, 1 or more, not "${text}"`;
  throw new AppError("usage", "E_FLAG", message);
}
