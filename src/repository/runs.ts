import { z } from "zod";
import { MiB } from "../bytes/size.ts";
import { AppError, messageOf } from "../errors.ts";
import type { Repository } from "./config.ts";
import { count, name, shortText, timeText, uuid, uuid7 } from "./fields.ts";
import { Prefix, checkSourceName, parseKey, runBeginKey, runEndKey } from "./names.ts";
import { encodeRecord, parseRecord } from "./record.ts";

/** A run's record is never larger, in bytes as stored. */
const RUN_SIZE_MAX = MiB;

const common = { format: z.literal(1), repository: uuid, source: name, run: uuid };

const beginSchema = z
  .strictObject({
    ...common,
    purpose: z.enum(["backup", "restore", "serve"]),
    /** By the store's clock. */
    startedAt: timeText,
    /**
     * The generation under this run: a backup's parent, or what is restored or served. While the run lives, nothing
     * that it reaches may be condemned (R6).
     */
    pinned: uuid7.nullable(),
    host: shortText,
    writer: shortText,
  })
  .readonly();

/** Who writes or reads what, since when. */
export type RunBegin = z.infer<typeof beginSchema>;

const endSchema = z
  .strictObject({
    ...common,
    endedAt: timeText,
    outcome: z.enum(["done", "failed", "cancelled"]),
    /** What a backup committed. */
    generation: uuid7.nullable(),
    /** Why it did not end well. */
    error: z.strictObject({ code: shortText, message: shortText }).readonly().nullable(),
    seconds: z.number().nonnegative(),
    /** Requests sent, by operation: what the bill counts. */
    requests: z.record(shortText, count).readonly(),
  })
  .readonly();

/** How a run ended, well or not. */
export type RunEnd = z.infer<typeof endSchema>;

/** A run and what is known of it. */
export interface RunState {
  readonly begin: RunBegin;
  /** Undefined while it runs, and for ever when it died. */
  readonly end: RunEnd | undefined;
}

/**
 * Says that a run begins. Written before the run relies on its pinned generation, and that generation must be looked
 * up again afterwards: only then a collection that began earlier cannot have missed the pin (R6).
 */
export async function beginRun(repository: Repository, begin: RunBegin, signal: AbortSignal): Promise<void> {
  const key = runBeginKey(begin.source, begin.run);
  await repository.store.put(key, sealRun(repository, key, begin, beginSchema), signal);
}

/** What an end record says of a failure; undefined: it went well. */
export function endingOf(failure: unknown): Pick<RunEnd, "outcome" | "error"> {
  if (failure === undefined) return { outcome: "done", error: null };
  const known = failure instanceof AppError;
  return {
    outcome: known && failure.kind === "cancelled" ? "cancelled" : "failed",
    error: { code: known ? failure.code : "E_UNEXPECTED", message: messageOf(failure).slice(0, 1000) },
  };
}

/** Says how a run ended. */
export async function endRun(repository: Repository, end: RunEnd, signal: AbortSignal): Promise<void> {
  const key = runEndKey(end.source, end.run);
  await repository.store.put(key, sealRun(repository, key, end, endSchema), signal);
}

/** The newest `limit` runs of a source, oldest first; run ids are UUIDv7 and sort by age. */
export async function listRuns(
  repository: Repository,
  source: string,
  limit: number,
  signal: AbortSignal,
): Promise<RunState[]> {
  const { begun, ended } = await listRunNames(repository, source, signal);
  const runs: RunState[] = [];
  for (const run of begun.slice(-limit)) {
    const begin = await loadRunBegin(repository, source, run, signal);
    const end = ended.has(run)
      ? await loadRun(repository, runEndKey(source, run), source, run, endSchema, signal)
      : undefined;
    runs.push({ begin, end });
  }
  return runs;
}

/** The runs of a source that have begun, oldest first, and which of them have ended, by LIST alone. */
export async function listRunNames(
  repository: Repository,
  source: string,
  signal: AbortSignal,
): Promise<{ readonly begun: readonly string[]; readonly ended: ReadonlySet<string> }> {
  const begun: string[] = [];
  const ended = new Set<string>();
  for await (const { key } of repository.store.list(`${Prefix.runs}${checkSourceName(source)}/`, signal)) {
    const parsed = parseKey(key);
    if (parsed?.type === "runBegin") begun.push(parsed.run);
    if (parsed?.type === "runEnd") ended.add(parsed.run);
  }
  return { begun: begun.sort(), ended };
}

/** How a run began. @throws AppError E_NO_OBJECT (notFound); E_RECORD, E_SEAL, E_MISPLACED (corrupt). */
export async function loadRunBegin(
  repository: Repository,
  source: string,
  run: string,
  signal: AbortSignal,
): Promise<RunBegin> {
  return await loadRun(repository, runBeginKey(source, run), source, run, beginSchema, signal);
}

function sealRun<T extends RunBegin | RunEnd>(
  repository: Repository,
  key: string,
  record: T,
  schema: z.ZodType<T>,
): Buffer {
  const plain = encodeRecord(record);
  parseRecord(schema, plain, `run ${key}`); // what would not be read back must not be written
  return repository.sealer.sealObject("run", key, plain);
}

async function loadRun<T extends RunBegin | RunEnd>(
  repository: Repository,
  key: string,
  source: string,
  run: string,
  schema: z.ZodType<T>,
  signal: AbortSignal,
): Promise<T> {
  const stored = await repository.store.get(key, RUN_SIZE_MAX, signal);
  const record = parseRecord(schema, repository.sealer.openObject("run", key, stored), `run ${key}`);
  const home = repository.config.repository;
  if (record.source !== source || record.run !== run || record.repository !== home) {
    throw new AppError("corrupt", "E_MISPLACED", `The record ${key} belongs elsewhere and was put there`, {
      key,
    });
  }
  return record;
}
