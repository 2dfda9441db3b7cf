import type { Repository } from "../../repository/config.ts";
import { Prefix } from "../../repository/names.ts";
import { SPAN_LIMITS, spans, type SlotPlaces } from "../../restore/spans.ts";
import type { RequestCounts } from "../../store/store.ts";
import type { Choice, PackToMove } from "./candidates.ts";
import type { DeadObject } from "./survey.ts";
import { BATCH_MAX } from "./sweep.ts";
import type { Litter } from "./tidy.ts";

/** Taking and giving back the lease: two LISTs, two writes, a read and a delete. */
const LEASE: RequestCounts = { ListObjectsV2: 2, PutObject: 2, GetObject: 1, DeleteObjects: 1 };

/** What a dry run has found that there is to do. */
export interface Work {
  /** What this run has sent so far: a run that is no dry one sends that too. */
  readonly sent: RequestCounts;
  /** What its mark sent: deleting begins with another one (R1). */
  readonly mark: RequestCounts;
  readonly fresh: readonly DeadObject[];
  readonly expired: readonly DeadObject[];
  readonly litter: Litter;
  /** Copies of forgotten manifests whose time is over. */
  readonly forgotten: number;
  /** Objects in use. */
  readonly live: number;
  readonly sources: number;
  readonly moves: Choice | undefined;
}

/**
 * The requests that a prune would send now, by operation, within a few of what it then sends where blobs of a pack are
 * of about equal length: at most as many as it needs when each index object lists something that goes, and all that is
 * locked is locked anew.
 */
export async function expectedRequests(
  repository: Repository,
  work: Work,
  signal: AbortSignal,
): Promise<RequestCounts> {
  const total = new Requests();
  total.add(work.sent);
  total.add(LEASE);
  const { fresh, expired, litter, moves } = work;
  const litterCount = [litter.runs, litter.leases, litter.damaged, litter.condemned].flat().length;
  for (const count of [work.forgotten, expired.length, litterCount])
    total.add({ DeleteObjects: Math.ceil(count / BATCH_MAX) });
  if (expired.length > 0) total.add(work.mark);
  const packsToMove = moves?.packs ?? [];
  const condemnations = Number(fresh.length > 0) + Number(packsToMove.length > 0);
  total.add({ PutObject: condemnations });
  let indexObjects = 0;
  for await (const { key } of repository.store.list(Prefix.index, signal)) if (key !== "") indexObjects++;
  const readings = Number(fresh.some(({ type }) => type === "pack")) + 2 * Number(packsToMove.length > 0); // order, and condemnation
  total.add({ ListObjectsV2: readings, GetObject: readings * indexObjects });
  if (readings > 0) total.add({ PutObject: indexObjects, DeleteObjects: indexObjects });
  if (moves !== undefined && packsToMove.length > 0) {
    total.add(rewriting(repository, moves));
    total.add(ordering(work.sources));
  }
  if (repository.config.objectLock !== undefined)
    total.add({ HeadObject: work.live + expired.length, PutObjectRetention: work.live });
  return total.counts();
}

/** The newest generation of each source says in which order packs are copied: a LIST, its manifest, and a layer or two. */
function ordering(sources: number): RequestCounts {
  return { ListObjectsV2: 1 + sources, GetObject: 3 * sources };
}

/**
 * A directory and some spans of each old pack are read; new packs, forwards and an index object are written; and forwards
 * are read again, with the directories that they lead to, before the old packs are condemned.
 */
function rewriting({ config }: Repository, { packs, copiedBytes }: Choice): RequestCounts {
  const gets = packs.reduce((sum, pack) => sum + 1 + spanCount(pack, config.chunkSize), 0);
  const newPacks = Math.ceil(copiedBytes / config.packSize);
  const parts = Math.ceil(copiedBytes / config.partSize) + newPacks;
  return {
    ListObjectsV2: 2,
    GetObject: gets + packs.length + newPacks,
    CreateMultipartUpload: newPacks,
    UploadPart: parts,
    CompleteMultipartUpload: newPacks,
    PutObject: packs.length + 1,
  };
}

/** As if all blobs of the pack were equally long. */
function spanCount({ packRef, slots }: PackToMove, chunkSize: number): number {
  const length = packRef.blobBytes / packRef.slotCount;
  const places: SlotPlaces = {
    slotCount: packRef.slotCount,
    offsetOf: (slot) => slot * length,
    storedLength: () => length,
    rawLength: () => chunkSize,
  };
  return [...spans({ packRef, slots, chunks: slots }, places, SPAN_LIMITS)].length;
}

/** Sums of requests by operation. */
class Requests {
  readonly #counts = new Map<string, number>();

  add(requests: RequestCounts): void {
    for (const [operation, count] of Object.entries(requests)) {
      if (count > 0) this.#counts.set(operation, (this.#counts.get(operation) ?? 0) + count);
    }
  }

  counts(): RequestCounts {
    return Object.fromEntries(this.#counts);
  }
}
