import type { StoredManifest } from "../repository/manifest.ts";
import type { DiskWay, Plan } from "./plan.ts";
import type { PointInTime } from "./point-in-time.ts";

/** What a source may ask of the repository to decide which generation it goes on from. */
export interface EarlierGenerations {
  /** Of this source. */
  readonly latest: StoredManifest | undefined;
  /** One of this source by its id; undefined when it is not there. */
  byId(generation: string): Promise<StoredManifest | undefined>;
  /** Any, in the forms of `resolveGeneration`. @throws AppError E_NO_GENERATION, E_AMBIGUOUS. */
  resolve(name: string): Promise<StoredManifest>;
}

/** What a disk has for a run to read, in bytes. */
export interface DiskOutlook {
  readonly size: number;
  readonly readMax: number;
  /** Undefined where the source cannot tell. */
  readonly readLikely: number | undefined;
}

/**
 * Something to back up, from when the run holds its lease: a VM whose monitor we have, or exports that somebody else
 * holds still.
 */
export interface BackupSource {
  /** Full, incremental or rescan, disk by disk, each with its reason. Changes nothing that a dry run must not. */
  plan(earlier: EarlierGenerations, signal: AbortSignal): Promise<Plan>;

  /**
   * Opens the point in time. Called once.
   *
   * @param generation the id of the generation to be, which names what the source keeps of this instant.
   */
  open(plan: Plan, generation: string, signal: AbortSignal): Promise<PointInTime>;

  /** Sizes in bytes, for a dry run. Changes nothing. */
  sizes(ways: ReadonlyMap<string, DiskWay>, signal: AbortSignal): Promise<ReadonlyMap<string, number>>;

  /**
   * How much there is to read, for an estimate. Changes nothing.
   * @param chunkSize bytes: whole chunks are read.
   */
  outlook(
    ways: ReadonlyMap<string, DiskWay>,
    chunkSize: number,
    signal: AbortSignal,
  ): Promise<ReadonlyMap<string, DiskOutlook>>;

  /** After the point in time is closed. Never throws. */
  close(): Promise<void>;
}
