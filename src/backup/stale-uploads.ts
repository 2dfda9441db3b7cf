import type { Repository } from "../repository/config.ts";
import { LIST_GRAIN_MS } from "../repository/leases.ts";
import { Prefix, parseKey, uuidTime } from "../repository/names.ts";

/** A lease that was not renewed for so long is nobody's, milliseconds; far more than any lease lasts. */
const LEASE_DEAD_MS = 24 * 3600 * 1000;

/**
 * Aborts uploads of packs that dead runs left behind: invisible, and billed.
 *
 * Packs' keys do not tell whose they are, but a run begins its uploads after its own id was made, so what was begun
 * before the oldest run that may be alive belongs to nobody. All times are the store's, which tells those of uploads to
 * the second: what a run that came just now has begun may look older than this one.
 *
 * @param run UUIDv7 of this run, which holds its lease.
 * @returns how many were aborted.
 */
export async function abortStaleUploads(
  repository: Repository,
  run: string,
  signal: AbortSignal,
): Promise<number> {
  const { store } = repository;
  const now = (await store.now(signal)).getTime();
  let oldest = uuidTime(run)!;
  for await (const { key, lastModified } of store.list(Prefix.leases, signal)) {
    const name = parseKey(key);
    if (name?.type !== "lease" || now - lastModified.getTime() > LEASE_DEAD_MS) continue;
    oldest = Math.min(oldest, uuidTime(name.run) ?? 0);
  }
  let aborted = 0;
  for await (const upload of store.listUploads(Prefix.packs, signal)) {
    if (upload.initiated.getTime() + LIST_GRAIN_MS >= oldest) continue;
    await store.abortUpload(upload, signal);
    aborted++;
  }
  return aborted;
}
