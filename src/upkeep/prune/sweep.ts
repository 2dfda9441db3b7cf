import type { Repository } from "../../repository/config.ts";
import type { DeadObject } from "./survey.ts";

/** Keys a DeleteObjects request: what S3 takes. */
export const BATCH_MAX = 1000;

/**
 * A mark is believed for so long, milliseconds; then it is made anew. So a program that was stopped for a day does not go
 * on deleting by what it knew then.
 */
const MARK_MAX_MS = 15 * 60_000;

/** Both clocks: one does not run while the machine sleeps, the other may be set. */
interface Moment {
  readonly wallMs: number;
  readonly runMs: number;
}

export function moment(): Moment {
  return { wallMs: Date.now(), runMs: performance.now() };
}

/**
 * Deletes what was condemned long enough ago and is still dead (R1), in batches; any of it may be gone already.
 *
 * @param mark looks again at what is live, and answers what of the objects still may go.
 * @returns what was deleted.
 */
export async function sweep(
  repository: Repository,
  expired: readonly DeadObject[],
  mark: (objects: readonly DeadObject[]) => Promise<readonly DeadObject[]>,
  signal: AbortSignal,
): Promise<DeadObject[]> {
  const deleted: DeadObject[] = [];
  if (expired.length === 0) return deleted;
  let marked = moment(); // before the generations are listed
  let waiting = await mark(expired);
  while (waiting.length > 0) {
    if (isOver(marked)) {
      marked = moment();
      waiting = await mark(waiting);
      continue;
    }
    const batch = waiting.slice(0, BATCH_MAX);
    await repository.store.delete(
      batch.map(({ key }) => key),
      signal,
    );
    deleted.push(...batch);
    waiting = waiting.slice(BATCH_MAX);
  }
  return deleted;
}

function isOver(since: Moment): boolean {
  const now = moment();
  const wallMs = now.wallMs - since.wallMs;
  return wallMs < 0 || wallMs > MARK_MAX_MS || now.runMs - since.runMs > MARK_MAX_MS;
}
