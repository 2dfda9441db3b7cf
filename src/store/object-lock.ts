import type { LockMode, ObjectStore, Retention } from "./store.ts";

/** Which objects are locked when they are written, and for how long; undefined: this one is not. */
export type LockRule = (key: string) => { readonly mode: LockMode; readonly days: number } | undefined;

/** A store that can keep objects from being deleted. What a deletion does to a locked one: it hides it behind a marker. */
export interface LockingStore extends ObjectStore {
  /** @throws AppError E_NO_OBJECT_LOCK (usage): the bucket was made without. */
  checkObjectLock(signal: AbortSignal): Promise<void>;

  /** The same store, which locks what the rule names as it is written: there is no moment at which it could be deleted. */
  withLocks(rule: LockRule): LockingStore;

  /**
   * Locks an object for longer. @throws AppError E_NO_OBJECT; of a compliance lock that would become shorter, what the
   * store says of it.
   */
  extendRetention(key: string, retention: Retention, signal: AbortSignal): Promise<void>;
}

export function canLock(store: ObjectStore): store is LockingStore {
  return "withLocks" in store;
}
