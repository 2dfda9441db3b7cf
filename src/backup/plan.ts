import type { DiskSource } from "../disk/disk.ts";
import type { Repository } from "../repository/config.ts";
import { badChunks, type BadSlots } from "../repository/bad-slots.ts";
import { DiskMap, needsTail } from "../repository/layer-stack.ts";
import type { LayerRef } from "../repository/layer-writer.ts";
import type { Manifest, ManifestDisk, StoredManifest } from "../repository/manifest.ts";
import { ForcedChunks } from "./forced.ts";

/** Which way one disk goes, and why; the reason is for the user and stands in the manifest. */
export interface DiskWay {
  readonly kind: Manifest["kind"];
  readonly reason: string;
  /** Its parent generation's disk; absent for a full. */
  readonly parentDisk: ManifestDisk | undefined;
  /** The source's dirty bitmap that has recorded since the parent; for an incremental, and only for that. */
  readonly bitmap: string | undefined;
}

/** What a run does with each disk. */
export interface Plan {
  /** The generation that the new one stands on. */
  readonly parent: StoredManifest | undefined;
  /** By the disk's name, in the order of the manifest. */
  readonly ways: ReadonlyMap<string, DiskWay>;
}

/** A plan, and the newest generation that there was, which the new one's id has to follow. */
export interface PlanAfter extends Plan {
  readonly latest: StoredManifest | undefined;
}

/** A way made concrete for an opened disk. */
export interface DiskPlan extends Omit<DiskWay, "bitmap"> {
  /** The parent's layers, newest first, that the new layer goes on top of. */
  readonly base: readonly LayerRef[];
  /** A rescan compares each chunk with this map. */
  readonly compareWith: DiskMap | undefined;
  readonly forced: ForcedChunks;
}

/** Reads everything and stands on nothing. */
export function fullWay(reason: string): DiskWay {
  return { kind: "full", reason, parentDisk: undefined, bitmap: undefined };
}

/** Without a bitmap, against a parent's disk of the same name; a full where the parent has none. */
export function rescanWay(parent: StoredManifest, disk: string, why: string): DiskWay {
  const parentDisk = parent.disks.find(({ name }) => name === disk);
  if (parentDisk === undefined) return fullWay(`disk ${disk} is not in generation ${parent.generation}`);
  const reason = `${why}; compared with generation ${parent.generation}`;
  return { kind: "rescan", reason, parentDisk, bitmap: undefined };
}

/** By a bitmap that has recorded since the parent; a full where the parent does not have the disk. */
export function incrementalWay(
  parent: StoredManifest,
  disk: string,
  bitmap: string,
  reason: string,
): DiskWay {
  const parentDisk = parent.disks.find(({ name }) => name === disk);
  if (parentDisk === undefined) return fullWay(`disk ${disk} is not in generation ${parent.generation}`);
  return { kind: "incremental", reason, parentDisk, bitmap };
}

/**
 * Opens what the way needs.
 *
 * @param bad what lives in these slots is stored again (R12, R1).
 */
export async function planDisk(
  way: DiskWay,
  disk: DiskSource,
  bad: BadSlots,
  repository: Repository,
  signal: AbortSignal,
): Promise<DiskPlan> {
  const { chunkSize } = repository.config;
  const { parentDisk } = way;
  if (parentDisk === undefined) {
    return { ...way, base: [], compareWith: undefined, forced: new ForcedChunks([], chunkSize) };
  }
  const wantsMap = way.kind === "rescan" || !bad.none;
  const map = wantsMap ? await DiskMap.open(repository, parentDisk, signal) : undefined;
  const tail = needsTail(parentDisk.size, disk.size, chunkSize);
  const forced = tail === undefined ? [] : [{ first: tail, count: Infinity }];
  if (map !== undefined) {
    for await (const run of badChunks(map, bad, signal)) {
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
