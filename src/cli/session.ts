import { availableParallelism } from "node:os";
import { MiB } from "../bytes/size.ts";
import { ChunkWorkers } from "../chunk/workers.ts";
import { openRepository, type Repository } from "../repository/config.ts";
import type { Password } from "../repository/key-slots.ts";
import { PackDirectories } from "../repository/pack-reader.ts";
import type { ReadTools } from "../repository/read-tools.ts";
import { repositorySettings, type RepositorySettings } from "../settings.ts";
import { openStore } from "../store/open.ts";
import type { ObjectStore } from "../store/store.ts";
import type { CliContext } from "./action.ts";
import { repositoryPassword } from "./password.ts";

/** Slots of pack directories kept in memory: about 1.3 million, or 300 GiB of disk. */
const DIRECTORY_CACHE_BYTES = 64 * MiB;

const THREADS_MAX = 4;

/** The flags that every command on a repository has. */
export interface RepositoryFlags {
  readonly repository?: string;
  readonly cacheDir?: string;
}

/** A repository that is open for the time of a command. */
export interface Session extends ReadTools {
  readonly settings: RepositorySettings;
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
  const secret = password ?? repositoryPassword();
  return await withStore(flags, async (store, settings) =>
    work(await openRepository(store, cli.run.signal, secret), settings),
  );
}

/** The store of the repository the flags name, for what needs no password; closed whatever happened. */
export async function withStore<T>(
  flags: RepositoryFlags,
  work: (store: ObjectStore, settings: RepositorySettings) => Promise<T>,
): Promise<T> {
  const settings = repositorySettings(flags, process.env);
  const store = await openStore(settings.location);
  try {
    return await work(store, settings);
  } finally {
    store.close();
  }
}

/** As `withRepository`, with threads and a directory cache for work on data. */
export async function withSession<T>(
  flags: RepositoryFlags,
  cli: CliContext,
  work: (session: Session) => Promise<T>,
  password?: Password,
): Promise<T> {
  const withWorkers = async (repository: Repository, settings: RepositorySettings): Promise<T> => {
    const workers = await ChunkWorkers.start({
      threads: Math.min(availableParallelism(), THREADS_MAX),
      chunkSize: repository.config.chunkSize,
      keys: repository.sealer.chunkKeys,
    });
    try {
      const directories = new PackDirectories(repository, { cacheBytes: DIRECTORY_CACHE_BYTES });
      return await work({ repository, settings, workers, directories });
    } finally {
      await workers.close();
    }
  };
  return await withRepository(flags, cli, withWorkers, password);
}
