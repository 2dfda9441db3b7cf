import { GiB } from "../bytes/size.ts";
import type { Range } from "../disk/disk.ts";
import type { DiskMap } from "../repository/layer-stack.ts";
import type { PackRef } from "../repository/pack-directory.ts";

/** Raw bytes of the disk that are planned at once: bounds the memory of a plan whatever the disk's size. */
export const WINDOW_BYTES = 64 * GiB;

/** What one pack holds of a window: `slots[i]` belongs at chunk `chunks[i]`. Sorted by slot, then chunk. */
export interface PackPart {
  readonly packRef: PackRef;
  readonly slots: readonly number[];
  readonly chunks: readonly number[];
}

/** A stretch of the disk: of the chunks `from` to `to` - 1 all those that are wanted. */
export interface Window {
  readonly from: number;
  readonly to: number;
  readonly packs: readonly PackPart[];
  /** Sorted byte ranges that read as zero. */
  readonly zeros: readonly Range[];
}

/**
 * The disk front to back, window by window, each turned from "by chunk" into "by pack".
 * @param windowBytes a multiple of the chunk size.
 */
export async function* windows(
  map: DiskMap,
  diskSize: number,
  chunkSize: number,
  chunks: number,
  signal: AbortSignal,
  windowBytes = WINDOW_BYTES,
): AsyncGenerator<Window, void> {
  const step = windowBytes / chunkSize;
  for (let from = 0; from < chunks; from += step) {
    yield await planWindow(map, from, Math.min(from + step, chunks), diskSize, chunkSize, signal);
  }
}

async function planWindow(
  map: DiskMap,
  from: number,
  to: number,
  diskSize: number,
  chunkSize: number,
  signal: AbortSignal,
): Promise<Window> {
  const zeros: Range[] = [];
  const byPack = new Map<string, { packRef: PackRef; pairs: { slot: number; chunk: number }[] }>();
  for await (const run of map.runs(from, to, signal)) {
    if (run.where === "zero") {
      const offset = run.first * chunkSize;
      zeros.push({ offset, length: Math.min((run.first + run.count) * chunkSize, diskSize) - offset });
      continue;
    }
    const { packRef, slot } = run.where;
    let part = byPack.get(packRef.pack);
    if (part === undefined) byPack.set(packRef.pack, (part = { packRef, pairs: [] }));
    for (let index = 0; index < run.count; index++)
      part.pairs.push({ slot: slot + index, chunk: run.first + index });
  }
  const packs = [...byPack.values()].map(({ packRef, pairs }) => {
    pairs.sort((a, b) => a.slot - b.slot || a.chunk - b.chunk);
    return { packRef, slots: pairs.map((pair) => pair.slot), chunks: pairs.map((pair) => pair.chunk) };
  });
  return { from, to, packs, zeros };
}
