import { formatSize } from "../bytes/size.ts";
import type { VmBitmap, VmDisk, VmNode } from "./inventory.ts";
import { generationBitmap, parseGenerationBitmap } from "./names.ts";

/**
 * The ledger: which bitmaps on a VM's disks still say what changed since a generation of the repository, and which
 * must go. Nothing here asks QEMU, and it is the same for images that no VM runs on; bitmaps are only ever told apart by name,
 * never by place or content.
 */

export type LedgerBitmap = Pick<VmBitmap, "name" | "recording" | "busy" | "inconsistent">;

export interface LedgerDisk extends Pick<VmDisk, "name" | "node" | "driver" | "size" | "canPersist"> {
  readonly bitmaps: readonly LedgerBitmap[];
}

/** Disks, and whatever else has bitmaps: images below a snapshot. */
export interface Ledger {
  readonly disks: readonly LedgerDisk[];
  readonly nodes: readonly (Pick<VmNode, "name"> & { readonly bitmaps: readonly LedgerBitmap[] })[];
}

export interface KnownDisk {
  readonly size: number;
  /** That counts what changed since, as the manifest says; a repaired generation keeps that of the one it repairs. */
  readonly bitmap?: string | undefined;
}

/** A generation that the repository lists. */
export interface KnownGeneration {
  readonly generation: string;
  /** By name. */
  readonly disks: ReadonlyMap<string, KnownDisk>;
}

/** How one disk is read. */
export interface BitmapWay {
  /** The bitmap that has recorded since the parent generation; undefined: the disk has to be read as a whole. */
  readonly bitmap: string | undefined;
  /** Why, for people. */
  readonly reason: string;
}

export interface ParentChoice {
  /** The generation that the run stands on; undefined: there is none. */
  readonly parent: string | undefined;
  /** By the disk's name. */
  readonly ways: ReadonlyMap<string, BitmapWay>;
}

/** A bitmap of ours and where it is. */
export interface PlacedBitmap {
  readonly disk: string;
  readonly node: string;
  readonly name: string;
  readonly generation: string;
}

/** An interrupted run of the form that disables the old bitmap: what it recorded must go back into the old one. */
export interface HalfThread {
  readonly disk: string;
  readonly node: string;
  /** Of a listed generation, disabled when the successors began. */
  readonly parent: string;
  /** Of generations that never came to be; they record. */
  readonly successors: readonly string[];
}

/**
 * The newest generation of which some disk has a usable bitmap; without any, the newest.
 *
 * @param vm its disks, or those of them that are to be backed up.
 * @param known newest first.
 */
export function chooseParent(
  vm: Ledger,
  repository: string,
  known: readonly KnownGeneration[],
): ParentChoice {
  for (const generation of known) {
    const ways = waysFrom(vm, repository, generation);
    if ([...ways.values()].some((way) => way.bitmap !== undefined)) {
      return { parent: generation.generation, ways };
    }
  }
  const newest = known[0];
  if (newest !== undefined) {
    return { parent: newest.generation, ways: waysFrom(vm, repository, newest) };
  }
  const first: BitmapWay = { bitmap: undefined, reason: "there is no generation to stand on" };
  return { parent: undefined, ways: new Map(vm.disks.map((disk) => [disk.name, first])) };
}

function waysFrom(vm: Ledger, repository: string, parent: KnownGeneration): ReadonlyMap<string, BitmapWay> {
  return new Map(vm.disks.map((disk) => [disk.name, wayOf(vm, disk, repository, parent)]));
}

function wayOf(vm: Ledger, disk: LedgerDisk, repository: string, parent: KnownGeneration): BitmapWay {
  const id = parent.generation;
  const before = parent.disks.get(disk.name);
  const name = before?.bitmap ?? generationBitmap(repository, id, disk.name);
  const bitmap = disk.bitmaps.find((other) => other.name === name);
  const no = (reason: string): BitmapWay => ({ bitmap: undefined, reason });
  if (before === undefined) return no(`disk ${disk.name} is not in generation ${id}`);
  if (before.size !== disk.size) {
    // a grown part is not dirty in the bitmap, a part that was cut off and came back neither
    return no(`its size changed from ${formatSize(before.size)} to ${formatSize(disk.size)}`);
  }
  // a checkpoint's bitmap bears the same name on every disk: it may be another disk's, and only libvirt can tell
  if (parseGenerationBitmap(name) === undefined) return no(`generation ${id} has a checkpoint of libvirt`);
  if (bitmap === undefined) return no(whyMissing(vm, disk, repository, id));
  if (bitmap.inconsistent) return no("QEMU ended without storing its bitmap, which is lost");
  if (bitmap.busy) return no("its bitmap is in use by something else in QEMU");
  if (!bitmap.recording) return no("its bitmap was disabled, so changes went unrecorded");
  return { bitmap: name, reason: `bitmap since generation ${id}` };
}

function whyMissing(
  { nodes }: Pick<Ledger, "nodes">,
  disk: LedgerDisk,
  repository: string,
  generation: string,
): string {
  const other = disk.bitmaps
    .map((bitmap) => parseGenerationBitmap(bitmap.name))
    .find((of) => of?.repository === repository && of.generation === generation);
  if (other !== undefined) return `its image was that of disk ${other.disk}: disks changed places`;
  const name = generationBitmap(repository, generation, disk.name);
  if (nodes.some((node) => node.name !== disk.node && node.bitmaps.some((one) => one.name === name))) {
    return "its bitmap is on an image below: a snapshot was made over it";
  }
  const lost = `it has no bitmap of generation ${generation}`;
  return disk.canPersist
    ? `${lost}: QEMU ended without storing it, or the image was replaced or the bitmap removed`
    : `${lost}: an image of this kind (${disk.driver}) keeps none when QEMU ends`;
}

/**
 * Bitmaps of this repository that are of no use once `generation` is committed: all but its own, so that one a
 * repository and disk stays. Those of other repositories and names of others are never among them, nor those in use.
 */
export function staleBitmaps(
  disks: readonly LedgerDisk[],
  repository: string,
  generation: string,
): PlacedBitmap[] {
  return disks.flatMap((disk) =>
    ownBitmaps(disk, repository)
      .filter(({ placed, bitmap }) => !bitmap.busy && placed.generation !== generation)
      .map(({ placed }) => placed),
  );
}

/** Bitmaps of this repository whose generation it does not list: a run that died, or a generation that was deleted. */
export function unlistedBitmaps(
  disks: readonly LedgerDisk[],
  repository: string,
  known: readonly KnownGeneration[],
): PlacedBitmap[] {
  const listed = new Set(known.map((one) => one.generation));
  return disks.flatMap((disk) =>
    ownBitmaps(disk, repository)
      .map(({ placed }) => placed)
      .filter((placed) => !listed.has(placed.generation)),
  );
}

/**
 * Disabled bitmaps of this repository. A new bitmap must not begin beside one: the pair would look like a half-way
 * thread (`halfThreads`), although what changed before the new one began is in neither.
 */
export function disabledBitmaps(disk: LedgerDisk, repository: string): PlacedBitmap[] {
  return ownBitmaps(disk, repository)
    .filter(({ bitmap }) => isDisabled(bitmap))
    .map(({ placed }) => placed);
}

/**
 * Disks on which a run of the "thread" form ended half-way: the bitmap of a listed generation was disabled in the
 * same transaction in which its successor began, and the successor's generation never came to be. Together they
 * still say everything since the listed one.
 *
 * @param known newest first.
 */
export function halfThreads(
  disks: readonly LedgerDisk[],
  repository: string,
  known: readonly KnownGeneration[],
): HalfThread[] {
  return disks.flatMap((disk) => {
    const own = ownBitmaps(disk, repository).filter(({ belongsTo }) => belongsTo === disk.name);
    const bitmapOf = (generation: string): LedgerBitmap | undefined =>
      own.find(({ placed }) => placed.generation === generation)?.bitmap;
    const newest = known.map((one) => bitmapOf(one.generation)).find((bitmap) => bitmap !== undefined);
    if (newest === undefined || !isDisabled(newest)) return [];
    const listed = new Set(known.map((one) => one.generation));
    const successors = own
      .filter(({ placed, bitmap }) => !listed.has(placed.generation) && isRecording(bitmap))
      .map(({ bitmap }) => bitmap.name);
    return successors.length === 0
      ? []
      : { disk: disk.name, node: disk.node, parent: newest.name, successors };
  });
}

/** Whether it can be relied on from now on. */
export function isRecording(bitmap: LedgerBitmap): boolean {
  return bitmap.recording && !bitmap.inconsistent && !bitmap.busy;
}

function isDisabled(bitmap: LedgerBitmap): boolean {
  return !bitmap.recording && !bitmap.inconsistent && !bitmap.busy;
}

function ownBitmaps(
  disk: LedgerDisk,
  repository: string,
): { readonly placed: PlacedBitmap; readonly belongsTo: string; readonly bitmap: LedgerBitmap }[] {
  return disk.bitmaps.flatMap((bitmap) => {
    const of = parseGenerationBitmap(bitmap.name);
    if (of?.repository !== repository) return [];
    const placed = { disk: disk.name, node: disk.node, name: bitmap.name, generation: of.generation };
    return { placed, belongsTo: of.disk, bitmap };
  });
}
