import { chunkRuns } from "../chunk/grid.ts";
import type { DiskSource } from "../disk/disk.ts";
import { AppError } from "../errors.ts";
import type { StoredManifest } from "../repository/manifest.ts";
import { fullWay, incrementalWay, rescanWay, type DiskWay, type Plan } from "./plan.ts";
import type { PointInTime } from "./point-in-time.ts";
import type { BackupSource, DiskOutlook, EarlierGenerations } from "./source.ts";

/** What the user asked for, of disks that know nothing of generations. */
export interface HeldStill {
  /** The source's name in the repository. */
  readonly source: string;
  readonly diskNames: readonly string[];
  /** Read everything and stand on nothing. */
  readonly full: boolean;
  /** A dirty bitmap of every disk that has recorded since `parent`. */
  readonly bitmap: string | undefined;
  /** Which generation the bitmap belongs to, in any form that `resolveGeneration` takes. */
  readonly parent: string | undefined;
  /** @param bitmapOf the dirty bitmap a disk is to be opened with, if it goes the incremental way. */
  readonly open: (
    bitmapOf: (disk: string) => string | undefined,
    signal: AbortSignal,
  ) => Promise<PointInTime>;
}

/** Disks that somebody else holds still, and who vouches for the instant and the bitmap. */
export class HeldStillSource implements BackupSource {
  readonly #wish: HeldStill;

  constructor(wish: HeldStill) {
    this.#wish = wish;
  }

  /** @throws AppError (usage) E_BITMAP_WITHOUT_PARENT, E_PARENT_WITHOUT_BITMAP, E_PARENT_SOURCE, E_FULL_WITH_BITMAP. */
  async plan(earlier: EarlierGenerations): Promise<Plan> {
    const wish = this.#wish;
    const chosen = wish.parent === undefined ? undefined : await earlier.resolve(wish.parent);
    checkWish(wish, chosen);
    const parent = wish.full ? undefined : (chosen ?? earlier.latest);
    return { parent, ways: new Map(wish.diskNames.map((disk) => [disk, chooseWay(wish, parent, disk)])) };
  }

  async open(plan: Plan, _generation: string, signal: AbortSignal): Promise<PointInTime> {
    return await this.#wish.open((disk) => plan.ways.get(disk)?.bitmap, signal);
  }

  async sizes(ways: ReadonlyMap<string, DiskWay>, signal: AbortSignal): Promise<Map<string, number>> {
    const open = await this.#wish.open((disk) => ways.get(disk)?.bitmap, signal);
    const sizes = new Map([...open.disks].map(([name, disk]) => [name, disk.size]));
    await open.close("failed");
    return sizes;
  }

  /** By what the exports say is allocated or, with a bitmap, has changed. */
  async outlook(
    ways: ReadonlyMap<string, DiskWay>,
    chunkSize: number,
    signal: AbortSignal,
  ): Promise<Map<string, DiskOutlook>> {
    const open = await this.#wish.open((disk) => ways.get(disk)?.bitmap, signal);
    try {
      const outlooks = new Map<string, DiskOutlook>();
      for (const [name, disk] of open.disks) outlooks.set(name, await outlookOf(disk, chunkSize, signal));
      return outlooks;
    } finally {
      await open.close("failed");
    }
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

/** By what a disk says is allocated or, opened with a bitmap, has changed. */
export async function outlookOf(
  disk: DiskSource,
  chunkSize: number,
  signal: AbortSignal,
): Promise<DiskOutlook> {
  const { size } = disk;
  let bytes = 0;
  for await (const { first, count, state } of chunkRuns(
    disk.extents({ offset: 0, length: size }, signal),
    size,
    chunkSize,
  )) {
    if (state === "data") bytes += Math.min((first + count) * chunkSize, size) - first * chunkSize;
  }
  return { size, readMax: bytes, readLikely: bytes };
}

/** Full, incremental or rescan: never a full in silence. */
function chooseWay(wish: HeldStill, parent: StoredManifest | undefined, disk: string): DiskWay {
  if (wish.full) return fullWay("asked for with --full");
  if (parent === undefined) return fullWay(`first generation of ${wish.source}`);
  if (wish.bitmap !== undefined) {
    const reason = `bitmap ${wish.bitmap} since generation ${parent.generation}`;
    return incrementalWay(parent, disk, wish.bitmap, reason);
  }
  return rescanWay(parent, disk, "no dirty bitmap given");
}

function checkWish(wish: HeldStill, chosen: StoredManifest | undefined): void {
  if (wish.bitmap !== undefined && chosen === undefined) {
    throw new AppError(
      "usage",
      "E_BITMAP_WITHOUT_PARENT",
      `Which generation does bitmap ${wish.bitmap} belong to? Give it with --parent GENERATION`,
    );
  }
  if (chosen !== undefined && wish.bitmap === undefined) {
    throw new AppError(
      "usage",
      "E_PARENT_WITHOUT_BITMAP",
      "--parent needs --bitmap NAME: without a bitmap the newest generation is compared",
    );
  }
  if (chosen !== undefined && chosen.source !== wish.source) {
    throw new AppError(
      "usage",
      "E_PARENT_SOURCE",
      `Generation ${chosen.generation} is of ${chosen.source}, not of ${wish.source}`,
    );
  }
  if (wish.full && wish.bitmap !== undefined) {
    throw new AppError(
      "usage",
      "E_FULL_WITH_BITMAP",
      "--full reads everything: leave out --bitmap and --parent",
    );
  }
}
