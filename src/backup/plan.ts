import type { DiskSource } from "../disk/disk.ts";
import { AppError } from "../errors.ts";
import type { Repository } from "../repository/config.ts";
import { damagedChunks, type BadSlots } from "../repository/damaged.ts";
import { DiskMap, needsTail } from "../repository/layer-stack.ts";
import type { LayerRef } from "../repository/layer-writer.ts";
import type { Manifest, ManifestDisk, StoredManifest } from "../repository/manifest.ts";
import { ForcedChunks } from "./forced.ts";

/** What the user asked for. */
export interface PlanRequest {
  readonly source: string;
  /** Read everything and stand on nothing. */
  readonly full: boolean;
  /** A dirty bitmap of the exports that has recorded since `parent`. */
  readonly bitmap: string | undefined;
  /** The generation that the bitmap belongs to. */
  readonly parent: StoredManifest | undefined;
  /** The newest generation of the source. */
  readonly latest: StoredManifest | undefined;
}

/** Which way one disk goes, and why; the reason is for the user and stands in the manifest. */
export interface DiskWay {
  readonly kind: Manifest["kind"];
  readonly reason: string;
  /** Its parent generation's disk; absent for a full. */
  readonly parentDisk: ManifestDisk | undefined;
}

/** A way made concrete for an opened disk. */
export interface DiskPlan extends DiskWay {
  /** The parent's layers, newest first, that the new layer goes on top of. */
  readonly base: readonly LayerRef[];
  /** A rescan compares each chunk with this map. */
  readonly compareWith: DiskMap | undefined;
  readonly forced: ForcedChunks;
}

/** The generation that the new one stands on. */
export function parentOf(request: PlanRequest): StoredManifest | undefined {
  return request.full ? undefined : (request.parent ?? request.latest);
}

/**
 * Full, incremental or rescan: never a full in silence.
 *
 * @throws AppError (usage) E_BITMAP_WITHOUT_PARENT, E_PARENT_WITHOUT_BITMAP, E_PARENT_SOURCE.
 */
export function chooseWay(request: PlanRequest, disk: string): DiskWay {
  checkRequest(request);
  if (request.full) return full("asked for with --full");
  const parent = parentOf(request);
  if (parent === undefined) return full(`first generation of ${request.source}`);
  const parentDisk = parent.disks.find((other) => other.name === disk);
  if (parentDisk === undefined) {
    return full(`disk ${disk} is not in generation ${parent.generation}`);
  }
  if (request.bitmap !== undefined) {
    return {
      kind: "incremental",
      reason: `bitmap ${request.bitmap} since generation ${parent.generation}`,
      parentDisk,
    };
  }
  return {
    kind: "rescan",
    reason: `no dirty bitmap given; compared with generation ${parent.generation}`,
    parentDisk,
  };
}

function full(reason: string): DiskWay {
  return { kind: "full", reason, parentDisk: undefined };
}

function checkRequest(request: PlanRequest): void {
  if (request.bitmap !== undefined && request.parent === undefined) {
    throw new AppError(
      "usage",
      "E_BITMAP_WITHOUT_PARENT",
      `Which generation does bitmap ${request.bitmap} belong to? Give it with --parent GENERATION`,
    );
  }
  if (request.parent !== undefined && request.bitmap === undefined) {
    throw new AppError(
      "usage",
      "E_PARENT_WITHOUT_BITMAP",
      "--parent needs --bitmap NAME: without a bitmap the newest generation is compared",
    );
  }
  const chosen = request.parent;
  if (chosen !== undefined && chosen.source !== request.source) {
    throw new AppError(
      "usage",
      "E_PARENT_SOURCE",
      `Generation ${chosen.generation} is of ${chosen.source}, not of ${request.source}`,
    );
  }
  if (request.full && request.bitmap !== undefined) {
    throw new AppError(
      "usage",
      "E_FULL_WITH_BITMAP",
      "--full reads everything: leave out --bitmap and --parent",
    );
  }
}

/**
 * Opens what the way needs.
 *
 * @param damaged slots found bad, or condemned: what lives there is stored again (R12, R1).
 */
export async function planDisk(
  way: DiskWay,
  disk: DiskSource,
  damaged: BadSlots,
  repository: Repository,
  signal: AbortSignal,
): Promise<DiskPlan> {
  const { chunkSize } = repository.config;
  const { parentDisk } = way;
  if (parentDisk === undefined) {
    return { ...way, base: [], compareWith: undefined, forced: new ForcedChunks([], chunkSize) };
  }
  const wantsMap = way.kind === "rescan" || damaged.size > 0;
  const map = wantsMap ? await DiskMap.open(repository, parentDisk, signal) : undefined;
  const tail = needsTail(parentDisk.size, disk.size, chunkSize);
  const forced = tail === undefined ? [] : [{ first: tail, count: Infinity }];
  if (map !== undefined) {
    for await (const run of damagedChunks(map, damaged, signal)) {
      if (run.first < (tail ?? Infinity))
        forced.push({ ...run, count: Math.min(run.count, (tail ?? Infinity) - run.first) });
    }
  }
  return {
    ...way,
    base: parentDisk.layers,
    compareWith: way.kind === "rescan" ? map : undefined,
    forced: new ForcedChunks(forced, chunkSize),
  };
}
