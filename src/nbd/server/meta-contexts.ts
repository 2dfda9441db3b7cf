import { Context } from "../constants.ts";
import type { MetaContext } from "../options.ts";
import type { ServedDisk } from "./served-disk.ts";

/** A metadata context that a client selected; BLOCK_STATUS answers for each. */
export interface SelectedContext extends MetaContext {
  readonly about: "allocation" | "dirty";
}

/** The contexts that a disk offers, with the ids they have in every session. */
export function contextsOf(disk: ServedDisk): readonly SelectedContext[] {
  const allocation = { id: 1, name: Context.ALLOCATION, about: "allocation" } as const;
  if (disk.dirty === undefined) return [allocation];
  return [allocation, { id: 2, name: Context.DIRTY_BITMAP + disk.dirty.name, about: "dirty" }];
}

/**
 * LIST_META_CONTEXT: no query means all; a namespace with an empty leaf ("base:") means all in it, and so does
 * "qemu:dirty-bitmap:" (QEMU, docs/interop/nbd.rst). What is unknown finds nothing.
 */
export function listContexts(disk: ServedDisk, queries: readonly string[]): readonly SelectedContext[] {
  if (queries.length === 0) return contextsOf(disk);
  const wildcard = (query: string): boolean => /^[^:]+:$/.test(query) || query === Context.DIRTY_BITMAP;
  return contextsOf(disk).filter(({ name }) =>
    queries.some((query) => query === name || (wildcard(query) && name.startsWith(query))),
  );
}

/** SET_META_CONTEXT: exact names alone; wildcards and unknown names select nothing (proto.md). */
export function selectContexts(disk: ServedDisk, queries: readonly string[]): readonly SelectedContext[] {
  return contextsOf(disk).filter(({ name }) => queries.includes(name));
}
