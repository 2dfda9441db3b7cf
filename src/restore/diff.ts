import { chunkCount } from "../chunk/grid.ts";
import type { Range } from "../disk/disk.ts";
import type { MapRun } from "../repository/layer.ts";
import { DiskMap } from "../repository/layer-stack.ts";
import type { ManifestDisk } from "../repository/manifest.ts";
import type { ReadTools } from "../repository/read-tools.ts";

/**
 * Where two generations of a disk differ, in whole chunks (the last one may be short), without reading data:
 * equal addresses are equal bytes, and for different addresses the packs' directories tell the ids.
 *
 * What lies beyond the smaller disk's end differs only where the larger one is not zero. The chunk that this end cuts
 * short differs by its length, unless it is zero in both.
 *
 * @returns sorted ranges of the larger disk that do not touch.
 */
export async function* diffDisks(
  before: ManifestDisk,
  after: ManifestDisk,
  tools: ReadTools,
  signal: AbortSignal,
): AsyncGenerator<Range, void> {
  const { chunkSize } = after;
  const size = Math.max(before.size, after.size);
  const chunks = chunkCount(size, chunkSize);
  const maps = await Promise.all([before, after].map((disk) => DiskMap.open(tools.repository, disk, signal)));
  let start = -1;
  let end = -1;
  for await (const [first, count, a, b] of lockstep(
    maps[0]!.runs(0, chunks, signal),
    maps[1]!.runs(0, chunks, signal),
  )) {
    for (let index = 0; index < count; index++) {
      if (await sameChunk(a, b, index, tools, signal)) {
        if (a === "zero" && b === "zero") break; // the whole run is
        continue;
      }
      const chunk = first + index;
      if (chunk !== end) {
        if (start >= 0) yield rangeOf(start, end, chunkSize, size);
        start = chunk;
      }
      end = chunk + 1;
    }
  }
  if (start >= 0) yield rangeOf(start, end, chunkSize, size);
}

type Where = MapRun["where"];

async function sameChunk(
  a: Where,
  b: Where,
  index: number,
  tools: ReadTools,
  signal: AbortSignal,
): Promise<boolean> {
  if (a === "zero" || b === "zero") return a === b;
  const [slotA, slotB] = [a.slot + index, b.slot + index];
  if (a.packRef.pack === b.packRef.pack && slotA === slotB) return true;
  const directoryA = await tools.directories.get(a.packRef, signal);
  const directoryB = await tools.directories.get(b.packRef, signal);
  return directoryA.idAt(slotA).equals(directoryB.idAt(slotB));
}

/** Both maps cover the same chunks: cuts their runs where either one changes. */
async function* lockstep(
  a: AsyncIterable<MapRun>,
  b: AsyncIterable<MapRun>,
): AsyncGenerator<[first: number, count: number, a: Where, b: Where], void> {
  const others = b[Symbol.asyncIterator]();
  let other: MapRun | undefined;
  for await (const run of a) {
    for (let at = run.first; at < run.first + run.count;) {
      while (other === undefined || other.first + other.count <= at) {
        const next = await others.next();
        if (next.done === true) return;
        other = next.value;
      }
      const end = Math.min(run.first + run.count, other.first + other.count);
      yield [at, end - at, moved(run, at), moved(other, at)];
      at = end;
    }
  }
}

function moved(run: MapRun, to: number): Where {
  return run.where === "zero" ? "zero" : { ...run.where, slot: run.where.slot + to - run.first };
}

function rangeOf(start: number, end: number, chunkSize: number, size: number): Range {
  return { offset: start * chunkSize, length: Math.min(end * chunkSize, size) - start * chunkSize };
}
