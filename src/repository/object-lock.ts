import pLimit from "p-limit";
import { z } from "zod";
import { AppError } from "../errors.ts";
import { canLock, type LockingStore, type LockRule } from "../store/object-lock.ts";
import type { ObjectStore } from "../store/store.ts";
import type { Repository } from "./config.ts";
import { parseKey } from "./names.ts";

const DAY_MS = 86_400_000;

/** Requests about locks under way at once. */
const REQUESTS_MAX = 16;

/** Most days of a lock: ten years; S3 takes more, and nobody can take one back. */
export const LOCK_DAYS_MAX = 3653;

export const objectLockSchema = z
  .strictObject({
    mode: z.enum(["governance", "compliance"]),
    /** From the moment an object is written or, by prune, locked anew. */
    days: z.int().min(1).max(LOCK_DAYS_MAX),
  })
  .readonly();

/** How a repository's objects are kept from being deleted (FORMAT.md, "Object Lock"). */
export type ObjectLock = z.infer<typeof objectLockSchema>;

/** What a restore cannot do without. */
const LOCKED: ReadonlySet<string> = new Set(["repository", "key", "pack", "layer", "generation", "forward"]);

/** A store that locks what must be locked as it is written; the same store when that is nothing, or it cannot. */
export function lockedStore(store: ObjectStore, lock: ObjectLock | undefined): ObjectStore {
  if (lock === undefined || !canLock(store)) return store; // a copy in a directory is as good, without the lock
  const rule: LockRule = (key) => (LOCKED.has(parseKey(key)?.type ?? "") ? lock : undefined);
  return store.withLocks(rule);
}

/**
 * Whether a new repository can have a lock.
 * @throws AppError E_NO_OBJECT_LOCK (usage).
 */
export async function requireObjectLock(store: ObjectStore, signal: AbortSignal): Promise<LockingStore> {
  if (!canLock(store)) {
    const message = `${store.location} cannot lock objects: Object Lock is of S3 buckets; leave --object-lock out`;
    throw new AppError("usage", "E_NO_OBJECT_LOCK", message);
  }
  await store.checkObjectLock(signal);
  return store;
}

/**
 * Until when objects cannot be deleted, as far as these credentials may know. Costs a HEAD each; none in a repository
 * without locks.
 *
 * @returns only those that are locked now, by key.
 */
export async function lockedUntil(
  repository: Pick<Repository, "store" | "config">,
  keys: readonly string[],
  signal: AbortSignal,
): Promise<ReadonlyMap<string, Date>> {
  return await locksOf(repository, keys, () => undefined, signal);
}

/**
 * As `lockedUntil`, for who is about to delete: what is locked would only be hidden, and nobody told.
 *
 * @param keys of objects that are locked as they are written. @throws AppError E_LOCKS_HIDDEN (credentials).
 */
export async function lockedAgainstDeletion(
  repository: Pick<Repository, "store" | "config">,
  keys: readonly string[],
  signal: AbortSignal,
): Promise<ReadonlyMap<string, Date>> {
  const hidden = (key: string): never => {
    const message = `${repository.store.location} does not tell whether ${key} is locked: these credentials need s3:GetObjectRetention before they may delete`;
    throw new AppError("credentials", "E_LOCKS_HIDDEN", message, { key });
  };
  return await locksOf(repository, keys, hidden, signal);
}

/** @param untold called for an object that is there, of whose lock, past or present, nothing is told. */
async function locksOf(
  { store, config }: Pick<Repository, "store" | "config">,
  keys: readonly string[],
  untold: (key: string) => void,
  signal: AbortSignal,
): Promise<ReadonlyMap<string, Date>> {
  const locked = new Map<string, Date>();
  if (config.objectLock === undefined || !canLock(store)) return locked;
  const now = await store.now(signal);
  const limit = pLimit(REQUESTS_MAX);
  await limit.map(keys, async (key) => {
    const found = await store.head(key, signal);
    if (found === undefined) return;
    if (found.retention === undefined) untold(key);
    else if (found.retention.until > now) locked.set(key, found.retention.until);
  });
  return locked;
}

/**
 * Locks objects anew, those that have less than half of the repository's time left: so each costs a HEAD every time, and
 * a PutObjectRetention only now and then.
 *
 * @param keys of objects that are needed. One that is gone is left to whoever reads it.
 * @returns how many were locked anew.
 */
export async function extendLocks(
  { store, config }: Pick<Repository, "store" | "config">,
  keys: readonly string[],
  signal: AbortSignal,
): Promise<number> {
  const { objectLock: lock } = config;
  if (lock === undefined || !canLock(store)) return 0;
  const now = (await store.now(signal)).getTime();
  const enough = now + (lock.days * DAY_MS) / 2;
  const retention = { mode: lock.mode, until: new Date(now + lock.days * DAY_MS) };
  const limit = pLimit(REQUESTS_MAX);
  const extended = await limit.map(keys, async (key) => {
    const found = await store.head(key, signal);
    if (found === undefined || (found.retention?.until.getTime() ?? 0) >= enough) return false;
    await store.extendRetention(key, retention, signal);
    return true;
  });
  return extended.filter(Boolean).length;
}
