import { formatSize } from "../bytes/size.ts";
import { AppError } from "../errors.ts";
import { BITMAP_GRANULARITY } from "./fleecing.ts";
import { surveyVm, type Vm, type VmBitmap, type VmDisk } from "./inventory.ts";
import { findLeftovers } from "./leftovers.ts";
import { connectMonitor } from "./monitor.ts";
import { parseGenerationBitmap, parseNode, tokenOfBitmap } from "./names.ts";
import type { QmpClient } from "./qmp/client.ts";
import { clearLeftovers } from "./recovery.ts";
import { selectDisks } from "./requirements.ts";

/**
 * What a script may do with the dirty bitmaps of a running VM. Only QEMU ever changes a bitmap, when asked; image
 * files are not touched.
 */

export interface VerbOptions {
  /** Path of the monitor's socket. */
  readonly qmp: string;
  /** Where runs keep their files; an absolute path. */
  readonly scratchDir: string;
  warn(message: string): void;
}

/** Whose a bitmap is: its name tells. */
export type BitmapOwner =
  /** Records what changed on that disk since a generation of that repository. */
  | {
      readonly kind: "generation";
      readonly repository: string;
      readonly generation: string;
      readonly disk: string;
    }
  /** Goes with the run that made it: a backup, or `ranges`. Without a pid that run is dead. */
  | { readonly kind: "run"; readonly run: string; readonly pid: number | null }
  | { readonly kind: "foreign" };

export interface OwnedBitmap extends VmBitmap {
  readonly owner: BitmapOwner;
}

export interface BitmapList {
  readonly disks: readonly {
    readonly disk: string;
    /** Bytes. */
    readonly size: number;
    readonly bitmaps: readonly OwnedBitmap[];
  }[];
  /** Those that no disk's writes reach first: on an image below a snapshot, for one. */
  readonly nodes: readonly { readonly node: string; readonly bitmaps: readonly OwnedBitmap[] }[];
}

/** Of a bitmap's name, in bytes, by QEMU. */
const NAME_MAX = 1023;

const GRANULARITY_MIN = 512;
const GRANULARITY_MAX = 2 ** 31;

/** What every name of ours begins with. */
const OUR_PREFIX = "bk-";

/**
 * Connects for a verb that changes something, and clears what dead runs left first, as a backup does: a bitmap must
 * not come to lie on one of their filters.
 *
 * @throws AppError as `connectMonitor`, `clearLeftovers` (E_VM_BUSY: a run of ours is at work) and `work`.
 */
export async function withVm<T>(
  { qmp, scratchDir, warn }: VerbOptions,
  signal: AbortSignal,
  work: (client: QmpClient, vm: Vm) => Promise<T>,
): Promise<T> {
  const client = await connectMonitor(qmp, scratchDir, signal);
  try {
    const cleared = await clearLeftovers(client, { scratchDir }, signal);
    for (const run of cleared) warn(`Cleared what an earlier run left behind: ${run}`);
    return await work(client, await surveyVm(client, signal));
  } finally {
    await client.close();
  }
}

/** The disks and their bitmaps. Changes nothing. @throws AppError as `connectMonitor` and `surveyVm`. */
export async function listBitmaps(
  { qmp, scratchDir }: Omit<VerbOptions, "warn">,
  signal: AbortSignal,
): Promise<BitmapList> {
  const client = await connectMonitor(qmp, scratchDir, signal);
  try {
    const runs = await findLeftovers(client, scratchDir, signal);
    const pids = new Map(runs.map(({ token, pid }) => [token, pid]));
    return bitmapsIn(await surveyVm(client, signal), pids);
  } finally {
    await client.close();
  }
}

/** @param pids of the runs that live, by token. */
export function bitmapsIn(vm: Vm, pids: ReadonlyMap<string, number | undefined>): BitmapList {
  const owned = (bitmap: VmBitmap): OwnedBitmap => ({ ...bitmap, owner: ownerOf(bitmap.name, pids) });
  const shown = new Set<string>();
  const disks = vm.disks.map((disk) => {
    const nodes = nodesOf(vm, disk);
    for (const { name } of nodes) shown.add(name);
    const bitmaps = nodes.flatMap((node) => node.bitmaps.map(owned));
    return { disk: disk.name, size: disk.size, bitmaps };
  });
  const nodes = vm.nodes.filter(({ name, bitmaps }) => bitmaps.length > 0 && !shown.has(name));
  return { disks, nodes: nodes.map(({ name, bitmaps }) => ({ node: name, bitmaps: bitmaps.map(owned) })) };
}

/** The disk's node; and while a run of ours has a filter over it, the image below, which QEMU calls the same. */
function nodesOf(vm: Vm, disk: VmDisk): Vm["nodes"] {
  const top = vm.nodes.filter(({ name }) => name === disk.node);
  if (parseNode(disk.node) === undefined) return top;
  const filename = top[0]?.filename;
  return [...top, ...vm.nodes.filter((node) => node.name !== disk.node && node.filename === filename)];
}

function ownerOf(name: string, pids: ReadonlyMap<string, number | undefined>): BitmapOwner {
  const generation = parseGenerationBitmap(name);
  if (generation !== undefined) return { kind: "generation", ...generation };
  const run = tokenOfBitmap(name);
  return run === undefined ? { kind: "foreign" } : { kind: "run", run, pid: pids.get(run) ?? null };
}

export interface NewBitmap {
  /** The disk's name, as `listBitmaps` tells it. */
  readonly disk: string;
  readonly name: string;
  /** Bytes that one bit stands for; undefined: 64 KiB. */
  readonly granularity?: number | undefined;
  /** It is to record nothing until it is enabled. */
  readonly disabled: boolean;
  /** It is to go when QEMU ends; else it stays where the image can keep it. */
  readonly transient: boolean;
}

/**
 * @returns the bitmap, as QEMU has it.
 * @throws AppError E_BITMAP_NAME, E_GRANULARITY (usage), E_DISK_UNKNOWN (notFound), E_BITMAP_EXISTS (locked); as
 *   `withVm` and `QmpClient.execute`.
 */
export async function addBitmap(
  options: VerbOptions,
  wish: NewBitmap,
  signal: AbortSignal,
): Promise<VmBitmap> {
  const { name, disabled, transient, granularity = BITMAP_GRANULARITY } = wish;
  checkNewName(name);
  checkGranularity(granularity);
  return await withVm(options, signal, async (client, vm) => {
    const disk = selectDisks(vm, [wish.disk])[0]!;
    if (disk.bitmaps.some((bitmap) => bitmap.name === name)) {
      const message = `Disk ${disk.name} has a bitmap ${name} already; remove it first, or take another name`;
      throw new AppError("locked", "E_BITMAP_EXISTS", message, { disk: disk.name, bitmap: name });
    }
    if (!transient && !disk.canPersist) {
      const what = disk.readOnly ? "read-only" : `an image of a kind (${disk.driver}) that keeps no bitmaps`;
      options.warn(`Disk ${disk.name} is ${what}: bitmap ${name} is gone when QEMU ends`);
    }
    const persistent = disk.canPersist && !transient;
    const args = { node: disk.node, name, persistent, granularity, disabled };
    await client.execute("block-dirty-bitmap-add", args, signal);
    return findBitmap(selectDisks(await surveyVm(client, signal), [disk.name])[0]!, name);
  });
}

/**
 * @param force also when it is the bitmap of a generation.
 * @throws AppError E_BITMAP_OF_RUN, E_BITMAP_OF_GENERATION (usage), E_DISK_UNKNOWN, E_BITMAP_UNKNOWN (notFound),
 *   E_BITMAP_BUSY (locked); as `withVm` and `QmpClient.execute`.
 */
export async function removeBitmap(
  options: VerbOptions,
  which: { readonly disk: string; readonly name: string },
  force: boolean,
  signal: AbortSignal,
): Promise<void> {
  const { name } = which;
  if (tokenOfBitmap(name) !== undefined) {
    const message = `Bitmap ${name} goes with the run that made it; what dead runs left is cleared by doctor --fix`;
    throw new AppError("usage", "E_BITMAP_OF_RUN", message, { bitmap: name });
  }
  await withVm(options, signal, async (client, vm) => {
    const disk = selectDisks(vm, [which.disk])[0]!;
    const bitmap = findBitmap(disk, name);
    refuseBusy(disk, bitmap);
    const of = parseGenerationBitmap(name);
    // one that QEMU lost is of no use to anybody
    if (of !== undefined && !bitmap.inconsistent && !force) {
      throw new AppError(
        "usage",
        "E_BITMAP_OF_GENERATION",
        `Bitmap ${name} of disk ${disk.name} says what changed since generation ${of.generation} of repository ` +
          `${of.repository}: without it the next backup there becomes a rescan, which reads all that the disk holds ` +
          `(of ${formatSize(disk.size)}); say --force if that is what you want`,
        { disk: disk.name, bitmap: name, generation: of.generation, repository: of.repository },
      );
    }
    await client.execute("block-dirty-bitmap-remove", { node: disk.node, name }, signal);
  });
}

/** @throws AppError E_BITMAP_UNKNOWN (notFound) that names those there are. */
export function findBitmap(disk: VmDisk, name: string): VmBitmap {
  const found = disk.bitmaps.find((bitmap) => bitmap.name === name);
  if (found !== undefined) return found;
  const names = disk.bitmaps.map((bitmap) => bitmap.name).sort();
  const there = names.length === 0 ? "none" : names.join(", ");
  const message = `Disk ${disk.name} has no bitmap "${name}"; it has ${there}`;
  throw new AppError("notFound", "E_BITMAP_UNKNOWN", message, { disk: disk.name, bitmap: name });
}

/** @throws AppError E_BITMAP_BUSY (locked). */
export function refuseBusy(disk: VmDisk, { name, busy }: VmBitmap): void {
  if (!busy) return;
  const message = `Bitmap ${name} of disk ${disk.name} is in use by an export or a job in QEMU; end that first`;
  throw new AppError("locked", "E_BITMAP_BUSY", message, { disk: disk.name, bitmap: name });
}

/** One that looks like a generation's would be taken for it, although it has not recorded since. */
function checkNewName(name: string): void {
  const why =
    name === ""
      ? "is empty"
      : Buffer.byteLength(name) > NAME_MAX
        ? `has more than ${NAME_MAX} bytes`
        : name.startsWith(OUR_PREFIX)
          ? `begins with ${OUR_PREFIX}, as those that backups make`
          : undefined;
  if (why === undefined) return;
  throw new AppError(
    "usage",
    "E_BITMAP_NAME",
    `A bitmap cannot be called "${name.slice(0, 100)}": it ${why}`,
  );
}

function checkGranularity(bytes: number): void {
  const powerOfTwo = Number.isInteger(Math.log2(bytes));
  if (powerOfTwo && bytes >= GRANULARITY_MIN && bytes <= GRANULARITY_MAX) return;
  const message = `A granularity is a power of 2 from ${formatSize(GRANULARITY_MIN)} to ${formatSize(GRANULARITY_MAX)}, not ${bytes}`;
  throw new AppError("usage", "E_GRANULARITY", message, { granularity: bytes });
}
