import { AppError } from "../errors.ts";
import { disabledBitmaps, isRecording } from "./bitmaps.ts";
import type { VmBitmap, VmDisk } from "./inventory.ts";
import { generationBitmap, type RunNames } from "./names.ts";
import type { Scratch } from "./scratch.ts";

/** A disk of a run. */
export interface RunDisk {
  /** The N in the names of what belongs to it. */
  readonly index: number;
  readonly disk: VmDisk;
  /** Records what changes after the instant. */
  readonly newBitmap: string;
  /** Has recorded since the parent generation, and goes on doing so. */
  readonly parent: VmBitmap | undefined;
  /** Bitmaps of ours that do not record and go when the new one begins. */
  readonly disabled: readonly string[];
}

/** What a run stands on and what it is going to be. */
export interface QemuPlan {
  /** Ids of the repository and of the generation to be made; they name its bitmaps. */
  readonly repository: string;
  readonly generation: string;
  /** By the disk's name: the bitmap that has recorded since the parent generation (`chooseParent`). */
  readonly parentBitmaps: ReadonlyMap<string, string>;
}

/**
 * @param disk as it is now: the plan was made some time ago.
 * @throws AppError E_PARENT_BITMAP (source) when the bitmap to stand on says less than it did then.
 */
export function runDiskOf(plan: QemuPlan, disk: VmDisk, index: number): RunDisk {
  const { repository, generation } = plan;
  const wanted = plan.parentBitmaps.get(disk.name);
  const parent = disk.bitmaps.find((bitmap) => bitmap.name === wanted);
  if (wanted !== undefined && (parent === undefined || !isRecording(parent))) {
    const message = `Bitmap ${wanted} of disk ${disk.name} was removed, disabled or taken by another hand just now; run the backup again`;
    throw new AppError("source", "E_PARENT_BITMAP", message, { disk: disk.name, bitmap: wanted });
  }
  return {
    index,
    disk,
    newBitmap: generationBitmap(repository, generation, disk.name),
    parent,
    disabled: disabledBitmaps(disk, repository).map((bitmap) => bitmap.name),
  };
}

/** A step of QMP's `transaction`. */
export interface Action {
  readonly type: string;
  readonly data: Readonly<Record<string, unknown>>;
}

/**
 * One way to hold disks still while the guest writes: what is about to be overwritten is copied to the scratch image
 * first. What it makes has the names of the run, and `clearLeftovers` knows how to undo each of them.
 */
export interface Fleecing {
  /** What takes time and the guest does not notice. Before the freeze. */
  attach(scratch: readonly Scratch[], signal: AbortSignal): Promise<void>;
  /**
   * The instant: from here on the scratch holds what the guest overwrites, new bitmaps record, and the parent's are
   * copied. The guest's file systems may stand frozen for just as long as this takes.
   */
  take(signal: AbortSignal): Promise<void>;
  /** Makes the disk's view of the instant readable. After the thaw. */
  view(disk: RunDisk, signal: AbortSignal): Promise<View>;
  /** @returns what is not as it was made; undefined when all stands. */
  whatBroke(signal: AbortSignal): Promise<string | undefined>;
}

/** What to export of a disk: arguments of block-export-add. */
export interface View {
  readonly node: string;
  readonly bitmaps: readonly (string | { readonly node: string; readonly name: string })[];
}

/** Bytes a bit; all of ours have the same, so that merging them is exact. */
export const BITMAP_GRANULARITY = 65536;

/**
 * What happens to a disk's bitmaps at the instant. The parent's is not touched: a disabled copy of it is exported, so
 * that nothing has to be repaired when the run fails, or dies.
 */
export function bitmapActions({ disk, newBitmap, parent, disabled }: RunDisk, names: RunNames): Action[] {
  const { node } = disk;
  return [
    ...disabled.map((name) => ({ type: "block-dirty-bitmap-remove", data: { node, name } })),
    {
      type: "block-dirty-bitmap-add",
      data: { node, name: newBitmap, persistent: disk.canPersist, granularity: BITMAP_GRANULARITY },
    },
    ...(parent === undefined ? [] : copyActions(node, parent, names)),
  ];
}

/** Makes the run's temporary bitmap: what `bitmap` says at this moment, for export, which takes none that records. */
export function copyActions(node: string, { name, granularity }: VmBitmap, names: RunNames): Action[] {
  const copy = names.temporaryBitmap;
  return [
    {
      type: "block-dirty-bitmap-add",
      data: { node, name: copy, persistent: false, disabled: true, granularity },
    },
    { type: "block-dirty-bitmap-merge", data: { node, target: copy, bitmaps: [name] } },
  ];
}
