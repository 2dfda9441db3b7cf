import { chunkCount } from "../chunk/grid.ts";
import { AppError } from "../errors.ts";
import { BlockCache } from "./block-cache.ts";
import type { Repository } from "./config.ts";
import type { Layer } from "./layer-object.ts";
import { openLayer } from "./layer-reader.ts";
import { walkLayers } from "./layer-walk.ts";
import type { LayerRef } from "./layer-writer.ts";
import type { DiskGeometry, MapRun } from "./layer.ts";

export type { MapRun } from "./layer.ts";

/** Most layers of a disk that a backup leaves behind. */
export const LAYERS_MAX = 12;

/** Most layers that a manifest may name (FORMAT.md, "Limits"). */
const LAYERS_READ_MAX = 16;

/** What a manifest says of a disk's map. */
export interface MappedDisk extends DiskGeometry {
  readonly name: string;
  /** Newest first. */
  readonly layers: readonly LayerRef[];
}

/**
 * Where every chunk of a disk lives, at one generation: a stack of layers, newest first. The newest mention wins;
 * what none mentions is zero.
 */
export class DiskMap {
  readonly size: number;
  readonly chunkSize: number;
  /** Chunks of the disk; all that is beyond is zero. */
  readonly chunks: number;
  /** Newest first. */
  readonly layers: readonly Layer[];

  private constructor(disk: MappedDisk, layers: readonly Layer[]) {
    this.size = disk.size;
    this.chunkSize = disk.chunkSize;
    this.chunks = chunkCount(disk.size, disk.chunkSize);
    this.layers = layers;
  }

  /**
   * Opens all layers at once: one request each, at most two.
   *
   * @param cacheBytes bounds the decoded segments and pack tables kept; bytes.
   * @throws AppError E_LAYER, E_LAYER_MISSING, E_LAYER_STACK, E_SEAL (corrupt), E_LAYER_VERSION (usage); errors of
   *   the store.
   */
  static async open(
    repository: Repository,
    disk: MappedDisk,
    signal: AbortSignal,
    cacheBytes?: number,
  ): Promise<DiskMap> {
    if (disk.layers.length === 0 || disk.layers.length > LAYERS_READ_MAX) {
      throw stackError(disk, `it has ${disk.layers.length} layers`);
    }
    const cache = new BlockCache(cacheBytes);
    const stop = new AbortController();
    const opening = disk.layers.map((ref) =>
      openLayer(repository, ref, AbortSignal.any([signal, stop.signal]), cache),
    );
    try {
      const layers = await Promise.all(opening);
      checkStack(disk, layers);
      return new DiskMap(disk, layers);
    } catch (error) {
      stop.abort(error);
      await Promise.allSettled(opening);
      throw error;
    }
  }

  /**
   * The chunks `from` to `to` - 1 in order, without gaps; chunks beyond the disk are zero. Streams: memory is a
   * segment a layer besides the cache.
   *
   * @throws AppError E_LAYER, E_SEAL (corrupt); errors of the store.
   */
  async *runs(from: number, to: number, signal: AbortSignal): AsyncGenerator<MapRun, void> {
    let zeros: { first: number; count: number } | undefined;
    for await (const answer of walkLayers(this.layers, this, from, to, signal)) {
      if (answer.is !== "data") {
        zeros = { first: zeros?.first ?? answer.first, count: (zeros?.count ?? 0) + answer.count };
        continue;
      }
      if (zeros !== undefined) yield { ...zeros, where: "zero" };
      zeros = undefined;
      const packRef = await answer.layer.packOf(answer, signal);
      yield { first: answer.first, count: answer.count, where: { packRef, slot: answer.slot } };
    }
    if (zeros !== undefined) yield { ...zeros, where: "zero" };
  }
}

function checkStack(disk: MappedDisk, layers: readonly Layer[]): void {
  for (const layer of layers) {
    if (layer.chunkSize !== disk.chunkSize) throw stackError(disk, `${layer.name} has another chunk size`);
  }
  if (layers[0]!.size !== disk.size)
    throw stackError(disk, `${layers[0]!.name} is of another size than the disk`);
}

function stackError(disk: MappedDisk, why: string): AppError {
  return new AppError("corrupt", "E_LAYER_STACK", `The map of disk ${disk.name} is damaged: ${why}`, {
    layers: disk.layers.length,
  });
}

/**
 * R9: the first chunk that a new layer must mention, it and all that follow, because the disk's size changed. The
 * chunk that holds the smaller of the two ends is one of them: it has become longer or shorter.
 *
 * @param parentSize bytes; undefined without a parent.
 * @returns undefined when nothing needs to be mentioned.
 */
export function needsTail(
  parentSize: number | undefined,
  newSize: number,
  chunkSize: number,
): number | undefined {
  if (parentSize === undefined || parentSize === newSize) return undefined;
  const first = Math.floor(Math.min(parentSize, newSize) / chunkSize);
  return first < chunkCount(newSize, chunkSize) ? first : undefined;
}

/**
 * Which layers become one: while the layer below is smaller than twice what lies above it, and while there would be
 * more than `LAYERS_MAX`. So each byte of a layer is written again only as often as the stack doubles.
 *
 * @param encodedSizes stored bytes of each layer, newest first, the new one included.
 * @returns how many from the top are merged; 1: none.
 */
export function planMerge(encodedSizes: readonly number[]): number {
  let merged = 1;
  let bytes = encodedSizes[0] ?? 0;
  while (merged < encodedSizes.length) {
    const below = encodedSizes[merged]!;
    if (below >= 2 * bytes && encodedSizes.length - merged + 1 <= LAYERS_MAX) break;
    bytes += below;
    merged += 1;
  }
  return merged;
}
