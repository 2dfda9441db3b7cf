import { hash } from "node:crypto";
import { MiB } from "../bytes/size.ts";
import { AppError, hasCode } from "../errors.ts";
import { mapOrdered } from "../flow/map-ordered.ts";
import type { Repository } from "../repository/config.ts";
import { keepForgotten } from "../repository/forgotten.ts";
import { MANIFEST_SIZE_MAX } from "../repository/manifest.ts";
import { generationKey } from "../repository/names.ts";
import type { PinLookup } from "../repository/pins.ts";
import { guardReasons, readGuards } from "./guards.ts";
import type { Judged, SourcePlan } from "./plan-forget.ts";

/** Manifests fetched at once. */
const GETS_MAX = 16;

/** Manifests that are deleted, and kept in memory to be put back, together. */
const BATCH_MAX = 64;
const BATCH_BYTES = 32 * MiB;

/** What putting back may take after an interruption, milliseconds. */
const CLEANUP_MS = 30_000;

/**
 * A manifest is put back only so soon after its deletion, milliseconds: to a process that slept for days (and holds the
 * bytes still) a prune may have removed what the manifest names.
 */
const PUT_BACK_MAX_MS = 3_600_000;

/** A manifest as it is stored. */
interface Read {
  readonly judged: Judged;
  readonly key: string;
  readonly stored: Buffer;
}

/**
 * Forgets what a plan says (R24): deletes manifests, and only those, when a copy is kept of each that can be read, so that
 * it can be brought back. What they name stays until a prune.
 *
 * Oldest first, so that one that is stopped leaves the newest. After each deletion holds and pins are read again, and
 * what came meanwhile has its manifest put back, byte for byte; so are all of a batch that could not be finished.
 *
 * @returns what became of it: where a hold or a pin came meanwhile, the generation is kept.
 * @throws AppError E_MANIFEST_CHANGED (corrupt), E_FORGET_HALF (unavailable), and those of the store.
 */
export async function forget(
  repository: Repository,
  plan: SourcePlan,
  lookup: PinLookup,
  run: AbortController,
): Promise<SourcePlan> {
  const stays = new Map<string, readonly string[]>();
  let batch: Read[] = [];
  const finish = async (): Promise<void> => {
    const guarded = await forgetBatch(repository, plan.source, batch, lookup, run.signal);
    for (const [generation, reasons] of guarded) stays.set(generation, reasons);
    batch = [];
  };
  const reads = mapOrdered(plan.remove, GETS_MAX, run, (judged, signal) =>
    readAgain(repository, judged, signal),
  );
  for await (const read of reads) {
    if (read === undefined) continue;
    batch.push(read);
    const bytes = batch.reduce((sum, { stored }) => sum + stored.length, 0);
    if (batch.length >= BATCH_MAX || bytes >= BATCH_BYTES) await finish();
  }
  if (batch.length > 0) await finish();
  const kept = plan.remove.flatMap((one) => {
    const reasons = stays.get(one.generation);
    return reasons === undefined ? [] : [{ ...one, reasons }];
  });
  return {
    source: plan.source,
    keep: [...plan.keep, ...kept].sort((a, b) => (a.generation < b.generation ? -1 : 1)),
    remove: plan.remove.filter(({ generation }) => !stays.has(generation)),
  };
}

/** Undefined for one that somebody else has forgotten meanwhile. */
async function readAgain(
  repository: Repository,
  judged: Judged,
  signal: AbortSignal,
): Promise<Read | undefined> {
  const key = generationKey(judged.source, judged.generation);
  let stored: Buffer;
  try {
    stored = await repository.store.get(key, MANIFEST_SIZE_MAX, signal);
  } catch (error) {
    if (hasCode(error, "E_NO_OBJECT")) return undefined;
    throw error;
  }
  if (judged.digest === undefined || hash("sha256", stored) === judged.digest) return { judged, key, stored };
  const message = `The manifest ${key} is not the one that was read a moment ago; run blockhaul verify`;
  throw new AppError("corrupt", "E_MANIFEST_CHANGED", message, { key });
}

/**
 * R24. A run writes its pin and then looks the generation up; here the manifest is deleted and then pins are read. So for
 * every order of the four either the run finds no generation, or its pin is found here. Holds are made the same way.
 *
 * @returns what is held or in use and therefore stays, with the reasons.
 */
async function forgetBatch(
  repository: Repository,
  source: string,
  batch: readonly Read[],
  lookup: PinLookup,
  signal: AbortSignal,
): Promise<ReadonlyMap<string, readonly string[]>> {
  const stays = new Map<string, readonly string[]>();
  const guardedNow = async (): Promise<ReadonlyMap<string, readonly string[]>> => {
    const guards = await readGuards(repository, source, lookup, signal);
    for (const [generation, guard] of guards) stays.set(generation, guardReasons(guard));
    return stays;
  };
  const before = await guardedNow();
  const going = batch.filter(({ judged }) => !before.has(judged.generation));
  if (going.length === 0) return stays;
  const begunAt = Date.now(); // before the copies are dated: a prune counts what they name for its grace
  await keepCopies(repository, going, signal);
  try {
    await repository.store.delete(
      going.map(({ key }) => key),
      signal,
    );
    await guardedNow();
  } catch (error) {
    await putBack(repository, going, begunAt, error);
    throw error;
  }
  const needed = going.filter(({ judged }) => stays.has(judged.generation));
  await putBack(repository, needed, begunAt, undefined);
  return stays;
}

/** Keeps manifests for `restore-generation`; damaged ones are of no use to anybody. */
async function keepCopies(
  repository: Repository,
  batch: readonly Read[],
  signal: AbortSignal,
): Promise<void> {
  const now = await repository.store.now(signal);
  const sound = batch.filter(({ judged }) => judged.digest !== undefined);
  const kept = await Promise.allSettled(
    sound.map(({ judged, stored }) => keepForgotten(repository, judged, stored, now, signal)),
  );
  for (const one of kept) if (one.status === "rejected") throw one.reason;
}

/**
 * Stores the very bytes again; those that are still there are no error.
 * @param begunAt before their copies were made, by this machine's clock, which also counts while it sleeps.
 * @param cause why all of a batch are put back.
 */
async function putBack(
  repository: Repository,
  batch: readonly Read[],
  begunAt: number,
  cause: unknown,
): Promise<void> {
  if (batch.length === 0) return;
  const cleanup = AbortSignal.timeout(CLEANUP_MS);
  const inTime = Date.now() - begunAt <= PUT_BACK_MAX_MS;
  const puts = await Promise.allSettled(
    inTime ? batch.map(({ key, stored }) => repository.store.put(key, stored, cleanup)) : [],
  );
  const lost = batch.filter((_, index) => puts[index]?.status !== "fulfilled");
  if (lost.length === 0) return;
  const failed = puts.find((put) => put.status === "rejected");
  const names = lost.map(({ key }) => key).join(", ");
  const message = `Generations were forgotten, and it could not be made sure that none of them is held or in use: ${names}; blockhaul restore-generation brings them back`;
  throw new AppError(
    "unavailable",
    "E_FORGET_HALF",
    message,
    { count: lost.length },
    cause ?? failed?.reason,
  );
}
