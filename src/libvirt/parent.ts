import { formatSize } from "../bytes/size.ts";
import type { BitmapWay, KnownGeneration, ParentChoice } from "../qemu/bitmaps.ts";
import type { Checkpoint } from "./checkpoints.ts";
import type { DomainDisk } from "./domain.ts";

/**
 * The ledger: which checkpoints of a domain still say what changed since a generation of the repository. Nothing here
 * asks libvirt.
 */

/**
 * The newest generation of which some disk has a checkpoint that can be relied on; without any, the newest.
 *
 * @param disks those to be backed up. @param known newest first.
 */
export function chooseCheckpoint(
  disks: readonly DomainDisk[],
  checkpoints: readonly Checkpoint[],
  known: readonly KnownGeneration[],
): ParentChoice {
  const waysFrom = (parent: KnownGeneration): Map<string, BitmapWay> =>
    new Map(disks.map((disk) => [disk.name, wayOf(disk, checkpoints, parent)]));
  for (const parent of known) {
    const ways = waysFrom(parent);
    if ([...ways.values()].some(({ bitmap }) => bitmap !== undefined))
      return { parent: parent.generation, ways };
  }
  const newest = known[0];
  if (newest !== undefined) return { parent: newest.generation, ways: waysFrom(newest) };
  const first: BitmapWay = { bitmap: undefined, reason: "there is no generation to stand on" };
  return { parent: undefined, ways: new Map(disks.map(({ name }) => [name, first])) };
}

function wayOf(disk: DomainDisk, checkpoints: readonly Checkpoint[], parent: KnownGeneration): BitmapWay {
  const no = (reason: string): BitmapWay => ({ bitmap: undefined, reason });
  const id = parent.generation;
  const before = parent.disks.get(disk.name);
  if (before === undefined) return no(`disk ${disk.name} is not in generation ${id}`);
  if (before.size !== disk.size) {
    // what was added is not dirty in the bitmap, what was cut off and came back neither
    return no(`its size changed from ${formatSize(before.size)} to ${formatSize(disk.size)}`);
  }
  if (!canTrack(disk)) return no(`an image of this kind (${disk.format}) has no checkpoints`);
  if (before.bitmap === undefined) return no(`generation ${id} was made without a checkpoint of it`);
  const checkpoint = checkpoints.find(({ name }) => name === before.bitmap);
  if (checkpoint === undefined) {
    return no(`libvirt has no checkpoint of generation ${id}: it was deleted, or the domain defined anew`);
  }
  const tracked = checkpoint.disks.get(disk.name);
  if (tracked === undefined) return no(`the checkpoint of generation ${id} does not cover it`);
  if (tracked.image === undefined || !disk.images.includes(tracked.image)) {
    // the image may be another disk's, with a bitmap of the same name
    return no(`its image was ${tracked.image ?? "another"} in generation ${id}`);
  }
  if (tracked.dirtyBytes === undefined) {
    return no("the bitmap of its checkpoint is missing or broken: QEMU ended without storing it");
  }
  return { bitmap: checkpoint.name, reason: `changes since generation ${id}, by its checkpoint` };
}

/** Whether libvirt keeps account of what changes on it. */
export function canTrack({ format }: Pick<DomainDisk, "format">): boolean {
  return format === "qcow2";
}

/**
 * Checkpoints of this repository that are of no use once `generation` is committed: all that track none of the other
 * disks that the domain has, so that one a repository and disk stays.
 *
 * @param checkpoints of the repository; those of others are never among them.
 * @param others disks of the domain that were not backed up.
 */
export function staleCheckpoints(
  checkpoints: readonly Checkpoint[],
  generation: string,
  others: readonly string[],
): string[] {
  return checkpoints
    .filter((one) => one.generation !== generation && !others.some((disk) => one.disks.has(disk)))
    .map(({ name }) => name);
}
