import type { Range } from "../disk/disk.ts";
import { mergeArriving } from "../disk/extents.ts";
import { AppError } from "../errors.ts";
import type { RetryPolicy } from "../flow/retry.ts";
import { openNbdSource } from "../nbd/source.ts";
import { unixAddress } from "../nbd/uri.ts";
import { findBitmap, refuseBusy, withVm, type VerbOptions } from "./bitmap-verbs.ts";
import { takeDown } from "./end-run.ts";
import { copyActions } from "./fleecing.ts";
import type { VmBitmap, VmDisk } from "./inventory.ts";
import { newToken, RunNames } from "./names.ts";
import { exportDisk, startNbdServer } from "./nbd-server.ts";
import type { QmpClient } from "./qmp/client.ts";
import { refuseIothreads, requireQemu, selectDisks } from "./requirements.ts";
import { RunFile } from "./run-file.ts";

/** What is dirty in a bitmap, at one moment. */
export interface BitmapRanges {
  readonly disk: string;
  readonly bitmap: string;
  /** Bytes that one bit stands for. */
  readonly granularity: number;
  /** Of the disk, bytes. */
  readonly size: number;
  /** Sorted, not touching. */
  readonly ranges: readonly Range[];
  /** Their sum. */
  readonly bytes: number;
}

/** More ranges than this are not listed: they would not fit in memory as a document. */
const RANGES_MAX = 1_000_000;

/** The server is QEMU itself, on this machine: when it is away, it is gone. */
const RETRY: RetryPolicy = { attemptsMax: 2, baseMs: 100, waitMaxMs: 100, budgetMs: 1000 };

/**
 * Reads a bitmap by NBD block status. QEMU exports none that records, so that a copy is made of it, disabled and
 * not persistent, and exported for the time of this call. All is taken down again; a call that is killed leaves
 * what any run leaves, and the next one, or the next backup, clears it.
 *
 * @throws AppError E_DISK_UNKNOWN, E_BITMAP_UNKNOWN (notFound), E_BITMAP_BUSY, E_NBD_SERVER_TAKEN (locked),
 *   E_BITMAP_INCONSISTENT, E_RANGES_MANY (source), E_IOTHREAD, E_QEMU_OLD, E_SCRATCH_FOLDER (usage); as `withVm`,
 *   `QmpClient.execute` and `openNbdSource`; the signal's reason, when everything is taken down.
 */
export async function readBitmapRanges(
  options: VerbOptions,
  which: { readonly disk: string; readonly name: string },
  signal: AbortSignal,
): Promise<BitmapRanges> {
  return await withVm(options, signal, async (client, vm) => {
    const disk = selectDisks(vm, [which.disk])[0]!;
    const bitmap = findBitmap(disk, which.name);
    refuseUnreadable(disk, bitmap);
    refuseIothreads(vm);
    requireQemu(vm, await client.schema(signal), "auto");
    const { qmp, scratchDir } = options;
    const names = new RunNames(newToken());
    const mark = await RunFile.create(scratchDir, names.token, qmp);
    try {
      return await readCopy(client, names, scratchDir, disk, bitmap, signal);
    } finally {
      await takeDown({ ...options, client, names, mark });
    }
  });
}

async function readCopy(
  client: QmpClient,
  names: RunNames,
  folder: string,
  disk: VmDisk,
  bitmap: VmBitmap,
  signal: AbortSignal,
): Promise<BitmapRanges> {
  const socket = await startNbdServer(client, names, folder, 1, signal);
  await client.execute("transaction", { actions: copyActions(disk.node, bitmap, names) }, signal);
  const copy = names.temporaryBitmap;
  await exportDisk(client, names, { index: 0, disk }, { node: disk.node, bitmaps: [copy] }, signal);
  const source = await openNbdSource(
    unixAddress(socket, disk.name),
    { bitmap: copy, connections: 1, retry: RETRY },
    signal,
  );
  try {
    const whole = { offset: 0, length: source.size };
    const ranges = await dirtyRanges(source.extents(whole, signal), disk, bitmap);
    const bytes = ranges.reduce((sum, { length }) => sum + length, 0);
    const { name, granularity } = bitmap;
    return { disk: disk.name, bitmap: name, granularity, size: source.size, ranges, bytes };
  } finally {
    await source.close();
  }
}

async function dirtyRanges(
  extents: AsyncIterable<Range & { readonly state: string }>,
  disk: VmDisk,
  bitmap: VmBitmap,
): Promise<Range[]> {
  const ranges: Range[] = [];
  const dirty = mergeArriving(onlyDirty(extents), () => true);
  for await (const range of dirty) {
    if (ranges.push(range) <= RANGES_MAX) continue;
    throw new AppError(
      "source",
      "E_RANGES_MANY",
      `Bitmap ${bitmap.name} of disk ${disk.name} has more than ${RANGES_MAX} dirty ranges; use one with a coarser granularity`,
      { disk: disk.name, bitmap: bitmap.name },
    );
  }
  return ranges;
}

/** Whether a dirty place holds data or zeros now is another question. */
async function* onlyDirty(extents: AsyncIterable<Range & { readonly state: string }>): AsyncGenerator<Range> {
  for await (const { offset, length, state } of extents) if (state !== "unchanged") yield { offset, length };
}

/** @throws AppError E_BITMAP_BUSY (locked), E_BITMAP_INCONSISTENT (source). */
function refuseUnreadable(disk: VmDisk, bitmap: VmBitmap): void {
  if (bitmap.inconsistent) {
    const message = `Bitmap ${bitmap.name} of disk ${disk.name} is lost: QEMU ended without storing it; it can only be removed`;
    throw new AppError("source", "E_BITMAP_INCONSISTENT", message, { disk: disk.name, bitmap: bitmap.name });
  }
  refuseBusy(disk, bitmap);
}
