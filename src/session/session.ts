import { MiB } from "../bytes/size.ts";
import { ChunkWorkers } from "../chunk/workers.ts";
import { openRepository, type Repository } from "../repository/config.ts";
import type { Password } from "../repository/key-slots.ts";
import { PackDirectories } from "../repository/pack-reader.ts";
import type { ReadTools } from "../repository/read-tools.ts";
import type { RepositorySettings } from "../settings.ts";
import type { Allowance } from "../store/allowance.ts";
import { openStore } from "../store/open.ts";
import type { ObjectStore } from "../store/store.ts";

/** Slots of pack directories kept in memory: about 1.3 million, or 300 GiB of disk. */
const DIRECTORY_CACHE_BYTES = 64 * MiB;

/** How to get at a store. */
export interface StoreAccess {
  readonly settings: RepositorySettings;
  /** What may be asked of it; undefined: whatever is wanted. */
  readonly allowance?: Allowance | undefined;
}

/** How to get at a repository. */
export interface Access extends StoreAccess {
  readonly password: Password;
}

/** A repository that is open, with threads and a directory cache for work on data. */
export interface Session extends ReadTools {
  readonly settings: RepositorySettings;
}

/** The store of a repository, for what needs no password; closed whatever happened. */
export async function withStore<T>(
  { settings, allowance }: StoreAccess,
  work: (store: ObjectStore) => Promise<T>,
): Promise<T> {
  const store = await openStore(settings.location, allowance === undefined ? {} : { allowance });
  try {
    return await work(store);
  } finally {
    store.close();
  }
}

/** Opens a repository, calls `work`, and closes what it opened, whatever happened. */
export async function withRepository<T>(
  access: Access,
  signal: AbortSignal,
  work: (repository: Repository) => Promise<T>,
): Promise<T> {
  return await withStore(access, async (store) => work(await openRepository(store, signal, access.password)));
}

/** As `withRepository`, with so many threads. */
export async function withSession<T>(
  access: Access,
  threads: number,
  signal: AbortSignal,
  work: (session: Session) => Promise<T>,
): Promise<T> {
  return await withRepository(access, signal, async (repository) => {
    const workers = await ChunkWorkers.start({
      threads,
      chunkSize: repository.config.chunkSize,
      keys: repository.sealer.chunkKeys,
    });
    try {
      const directories = new PackDirectories(repository, { cacheBytes: DIRECTORY_CACHE_BYTES });
      return await work({ repository, settings: access.settings, workers, directories });
    } finally {
      await workers.close();
    }
  });
}
