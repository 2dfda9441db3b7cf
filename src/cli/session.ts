import { availableParallelism } from "node:os";
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
  const access = accessOf(flags, password);
  return await sessions.withRepository(access, cli.run.signal, (repository) =>
    work(repository, access.settings),
  );
}

/** The store of the repository the flags name, for what needs no password; closed whatever happened. */
export async function withStore<T>(
  flags: RepositoryFlags,
  work: (store: ObjectStore) => Promise<T>,
): Promise<T> {
  return await sessions.withStore(repositorySettings(flags, process.env), work);
}

/** As `withRepository`, with threads and a directory cache for work on data. */
export async function withSession<T>(
  flags: RepositoryFlags,
  cli: CliContext,
  work: (session: Session) => Promise<T>,
  password?: Password,
): Promise<T> {
  return await sessions.withSession(accessOf(flags, password), workerThreads(), cli.run.signal, work);
}

function accessOf(flags: RepositoryFlags, password: Password | undefined): sessions.Access {
  return {
    password: password ?? repositoryPassword(),
    settings: repositorySettings(flags, process.env),
  };
}
