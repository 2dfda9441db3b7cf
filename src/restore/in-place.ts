import { GiB } from "../bytes/size.ts";
import type { DiskSource, DiskTarget, Range } from "../disk/disk.ts";
import type { ManifestDisk } from "../repository/manifest.ts";
import type { PackDirectories } from "../repository/pack-reader.ts";
import type { ReadTools } from "../repository/read-tools.ts";
import { DiskObserver, type ObservedChunks } from "./observe.ts";
import type { PackPart, Window } from "./plan.ts";
import { readDisk } from "./read-disk.ts";
import { writesOf } from "./restore-disk.ts";

/** Compared at once, and only then what differs in it is fetched: at most 2.2 MiB of memory. */
const WINDOW_BYTES = 4 * GiB;

export interface InPlaceStats {
  /** Read from the target. */
  bytesRead: number;
  /** Not even looked at, because the bitmap vouches for them. */
  bytesVouched: number;
  /** As stored, fetched from the repository. */
  bytesFetched: number;
  chunksFetched: number;
  /** Written to the target as data. */
  bytesWritten: number;
  chunksWritten: number;
  /** Made zero on the target. */
  bytesZero: number;
}

/** A disk that is there and is to be put right: the same one, to be read and to be written. */
export interface InPlaceDisk {
  /** What it says is `unchanged` is taken to hold what the generation says. */
  readonly source: DiskSource;
  readonly target: DiskTarget;
}

/**
 * Makes the target byte for byte what the generation's disk was, by fetching and writing only the chunks that differ.
 * Each is compared by its id: the hash of what the target holds against the one that the pack's directory has for it.
 *
 * When it resolves, all of it is right and flushed. After a failure the target is somewhere between what it was and what
 * it should be: calling it again does the rest.
 *
 * @param place its size is the disk's or more; what lies behind is left alone.
 */
export async function restoreInPlace(
  disk: ManifestDisk,
  place: InPlaceDisk,
  tools: ReadTools,
  run: AbortController,
  progress: (stats: Readonly<InPlaceStats>, looked: number) => void,
): Promise<InPlaceStats> {
  const { chunkSize, size } = disk;
  const { target } = place;
  const stats: InPlaceStats = {
    bytesRead: 0,
    bytesVouched: 0,
    bytesFetched: 0,
    chunksFetched: 0,
    bytesWritten: 0,
    chunksWritten: 0,
    bytesZero: 0,
  };
  const observer = new DiskObserver(place.source, disk, tools.workers, run);
  const counted = (from: number): void => {
    stats.bytesRead = observer.bytesRead;
    stats.bytesVouched = observer.bytesVouched;
    progress(stats, Math.min(size, from * chunkSize));
  };
  const choose = async (window: Window, signal: AbortSignal): Promise<Window> => {
    const { from, to } = window;
    const observed = await observer.observe(from, to, () => counted(from));
    counted(to);
    return await differing(window, observed, tools.directories, disk, signal);
  };
  await readDisk(
    disk,
    tools,
    {
      async data(span, signal) {
        stats.bytesFetched += span.storedBytes;
        stats.chunksFetched += span.blobs.length;
        for (const { offset, bytes, chunks } of writesOf(span, chunkSize)) {
          await target.write(offset, bytes, signal);
          stats.bytesWritten += bytes.length;
          stats.chunksWritten += chunks;
        }
      },
      async zero(offset, length, signal) {
        await target.zero(offset, length, signal);
        stats.bytesZero += length;
      },
    },
    run,
    { windowBytes: WINDOW_BYTES, choose },
  );
  await target.flush(run.signal);
  return stats;
}

/** What of the window the target does not hold yet. */
async function differing(
  window: Window,
  observed: ObservedChunks,
  directories: PackDirectories,
  disk: ManifestDisk,
  signal: AbortSignal,
): Promise<Window> {
  const packs: PackPart[] = [];
  for (const part of window.packs) {
    if (!part.chunks.some((chunk) => observed.looked(chunk))) continue;
    const directory = await directories.get(part.packRef, signal);
    const same = (index: number): boolean => {
      const slot = part.slots[index]!;
      // a slot that is not there is damage, which whoever fetches it tells
      return slot < directory.slotCount && observed.holds(part.chunks[index]!, directory.idAt(slot));
    };
    const wanted = part.chunks.flatMap((chunk, index) =>
      observed.looked(chunk) && !same(index) ? [index] : [],
    );
    if (wanted.length === 0) continue;
    packs.push({
      packRef: part.packRef,
      slots: wanted.map((index) => part.slots[index]!),
      chunks: wanted.map((index) => part.chunks[index]!),
    });
  }
  const zeros = window.zeros.flatMap((range) => [...notZero(range, observed, disk)]);
  return { ...window, packs, zeros };
}

/** The parts of a range, in whole chunks, that were looked at and are not zero; neighbours are joined. */
function* notZero(
  range: Range,
  observed: ObservedChunks,
  { chunkSize, size }: ManifestDisk,
): Generator<Range, void> {
  const end = Math.ceil((range.offset + range.length) / chunkSize);
  let start = -1;
  for (let chunk = range.offset / chunkSize; chunk <= end; chunk++) {
    const differs = chunk < end && observed.looked(chunk) && !observed.isZero(chunk);
    if (differs && start < 0) start = chunk;
    if (differs || start < 0) continue;
    const offset = start * chunkSize;
    yield { offset, length: Math.min(chunk * chunkSize, size) - offset };
    start = -1;
  }
}
