import {
  chooseParent,
  unlistedBitmaps,
  type KnownGeneration,
  type Ledger,
  type ParentChoice,
} from "../qemu/bitmaps.ts";
import { parseGenerationBitmap } from "../qemu/names.ts";
import { compareGenerations } from "../repository/generations.ts";
import type { StoredManifest } from "../repository/manifest.ts";
import { fullWay, incrementalWay, rescanWay, type DiskWay, type Plan } from "./plan.ts";
import type { EarlierGenerations } from "./source.ts";

/** Of whom a plan by bitmaps is made. */
export interface BitmapWish {
  /** The source's name in the repository. */
  readonly source: string;
  /** The repository's id: bitmaps bear it, so that several repositories can back up one disk. */
  readonly repository: string;
  /** Read everything and stand on nothing. */
  readonly full: boolean;
  warn(message: string): void;
}

/** The newest generation and those that the disks have bitmaps of, newest first. */
export async function candidates(
  earlier: EarlierGenerations,
  disks: Ledger["disks"],
  repository: string,
): Promise<StoredManifest[]> {
  const found = disks.flatMap(({ bitmaps }) => bitmaps.map(({ name }) => parseGenerationBitmap(name)));
  const ours = found.filter((of) => of !== undefined).filter((of) => of.repository === repository);
  return await listedAmong(
    earlier,
    ours.map(({ generation }) => generation),
  );
}

/** The newest generation and those of these that are listed, newest first; a GET for each, so not all there are. */
export async function listedAmong(
  { latest, byId }: EarlierGenerations,
  generations: readonly string[],
): Promise<StoredManifest[]> {
  const ids = new Set(generations);
  if (latest !== undefined) ids.delete(latest.generation);
  const found = await Promise.all([...ids].map((id) => byId(id)));
  return [latest, ...found]
    .filter((manifest) => manifest !== undefined)
    .sort((a, b) => compareGenerations(b, a));
}

/** Which way each disk goes, by the bitmaps there are; of those that no generation goes by it warns. */
export function planByBitmaps(wish: BitmapWish, ledger: Ledger, manifests: readonly StoredManifest[]): Plan {
  const { disks } = ledger;
  const { repository, warn } = wish;
  const known = manifests.map(knownGeneration);
  for (const { disk, generation } of unlistedBitmaps(disks, repository, known)) {
    warn(`Disk ${disk} has a bitmap of generation ${generation}, ${UNLISTED}`);
  }
  const choice = chooseParent(ledger, repository, known);
  return planByChoice(wish, choice, manifests);
}

/** The end of a warning of something in a VM or an image that belongs to a generation. */
export const UNLISTED =
  "which the repository does not list: its run ended before the commit, or somebody deleted it";

/** @param choice of all disks; made of these manifests. */
export function planByChoice(
  { source, full }: Pick<BitmapWish, "source" | "full">,
  choice: ParentChoice,
  manifests: readonly StoredManifest[],
): Plan {
  const all = (way: (disk: string) => DiskWay): Map<string, DiskWay> =>
    new Map([...choice.ways.keys()].map((disk) => [disk, way(disk)]));
  if (full) return { parent: undefined, ways: all(() => fullWay("asked for with --full")) };
  const parent = manifests.find(({ generation }) => generation === choice.parent);
  if (parent === undefined) {
    return { parent, ways: all(() => fullWay(`first generation of ${source}`)) };
  }
  const way = (disk: string): DiskWay => {
    const { bitmap, reason } = choice.ways.get(disk)!;
    return bitmap === undefined
      ? rescanWay(parent, disk, reason)
      : incrementalWay(parent, disk, bitmap, reason);
  };
  return { parent, ways: all(way) };
}

export function knownGeneration({ generation, disks }: StoredManifest): KnownGeneration {
  return { generation, disks: new Map(disks.map(({ name, size, bitmap }) => [name, { size, bitmap }])) };
}
