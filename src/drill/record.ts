import { AppError } from "../errors.ts";
import type { Repository } from "../repository/config.ts";
import { storeDrill, type DrillRecord } from "../repository/drills.ts";
import type { StoredManifest } from "../repository/manifest.ts";
import { uuidv7 } from "../repository/names.ts";
import type { DrillResult } from "./findings.ts";

/** Characters of the failure that are recorded. */
const MESSAGE_MAX = 1000;

/** A drill that has ended, and who made it. */
export interface EndedDrill {
  /** By the store's clock. */
  readonly startedAt: Date;
  readonly result: DrillResult;
  readonly host: string;
  readonly writer: string;
}

/**
 * Writes down what came of a drill.
 *
 * @returns the record; with `unrecorded` when the credentials may not write, or there is no space left.
 */
export async function recordDrill(
  repository: Repository,
  { source, generation, digest }: StoredManifest,
  { startedAt, result, host, writer }: EndedDrill,
  signal: AbortSignal,
): Promise<{ readonly record: DrillRecord; readonly unrecorded: AppError | undefined }> {
  const { store, config } = repository;
  const { proofs, failure, accelerator, seconds, bytesFetched, bytesRead, bytesWritten } = result;
  const record: DrillRecord = {
    format: 1,
    repository: config.repository,
    source,
    drill: uuidv7(startedAt.getTime()),
    generation,
    digest,
    endedAt: (await store.now(signal)).toISOString(),
    outcome: failure === undefined ? "passed" : "failed",
    proofs,
    error:
      failure === undefined ? null : { code: failure.code, message: failure.message.slice(0, MESSAGE_MAX) },
    accelerator,
    seconds,
    bytesFetched,
    bytesRead,
    bytesWritten,
    requests: store.requests(),
    host,
    writer,
  };
  try {
    await storeDrill(repository, record, signal);
    return { record, unrecorded: undefined };
  } catch (error) {
    if (!(error instanceof AppError) || (error.kind !== "credentials" && error.kind !== "full")) throw error;
    return { record, unrecorded: error };
  }
}
