import { AppError } from "../errors.ts";
import type { Repository } from "../repository/config.ts";
import { loadGeneration } from "../repository/generations.ts";
import type { StoredManifest } from "../repository/manifest.ts";
import { uuidv7 } from "../repository/names.ts";
import { beginRun, endingOf, endRun } from "../repository/runs.ts";

/** What recording the end may take after an interruption, milliseconds. */
const CLEANUP_MS = 10_000;

export interface PinOptions {
  readonly purpose: "restore" | "serve";
  readonly host: string;
  readonly writer: string;
  /** Told when the store takes no records: the work goes on without a pin. */
  readonly unpinned: (message: string) => void;
}

/** A record that work on a generation is under way. */
export interface Pin {
  /** Says that the work is over. @param failure what it failed with; undefined: it went well. */
  end(failure: unknown): Promise<void>;
}

/**
 * Does work that reads a generation, under a record that keeps a prune from condemning it meanwhile (R7).
 *
 * Credentials that may only read are no obstacle: the work then relies on the prune's grace.
 */
export async function withPin<T>(
  repository: Repository,
  manifest: StoredManifest,
  options: PinOptions,
  signal: AbortSignal,
  work: () => Promise<T>,
): Promise<T> {
  const pin = await beginPin(repository, manifest, options, signal);
  if (pin === undefined) return await work();
  const result = await work().catch(async (error: unknown) => {
    await pin.end(error).catch(() => undefined); // a record without an end only pins for a while longer
    throw error;
  });
  await pin.end(undefined).catch(() => undefined);
  return result;
}

/**
 * Writes the record, and looks the generation up again: only then a collection that began earlier cannot have missed
 * it (R6).
 *
 * @returns undefined when we are not allowed to write.
 * @throws AppError of kind notFound when the generation is there no more; errors of the store.
 */
export async function beginPin(
  repository: Repository,
  manifest: StoredManifest,
  { purpose, host, writer, unpinned }: PinOptions,
  signal: AbortSignal,
): Promise<Pin | undefined> {
  const { store, config } = repository;
  const { source, generation, digest } = manifest;
  const startedMs = performance.now();
  let run: string;
  try {
    const now = await store.now(signal);
    run = uuidv7(now.getTime());
    const common = { format: 1, repository: config.repository, source, run, host, writer } as const;
    const record = { ...common, startedAt: now.toISOString(), purpose, pinned: generation } as const;
    await beginRun(repository, record, signal);
  } catch (error) {
    if (!(error instanceof AppError) || (error.kind !== "credentials" && error.kind !== "full")) throw error;
    unpinned(`The ${purpose} is not recorded in the repository: ${error.message}`);
    return undefined;
  }
  const end = async (failure: unknown): Promise<void> => {
    const cleanup = AbortSignal.timeout(CLEANUP_MS);
    const endedAt = (await store.now(cleanup)).toISOString();
    const seconds = (performance.now() - startedMs) / 1000;
    const record = {
      format: 1,
      repository: config.repository,
      source,
      run,
      endedAt,
      generation: null,
      seconds,
    } as const;
    await endRun(repository, { ...record, ...endingOf(failure), requests: store.requests() }, cleanup);
  };
  try {
    await loadGeneration(repository, { source, generation }, signal, digest);
  } catch (error) {
    await end(error).catch(() => undefined); // it would pin for a day what nobody reads
    throw error;
  }
  return { end };
}
