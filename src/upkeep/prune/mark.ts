import { MiB } from "../../bytes/size.ts";
import { AppError } from "../../errors.ts";
import { drain, mapOrdered } from "../../flow/map-ordered.ts";
import { BlockCache } from "../../repository/block-cache.ts";
import type { Repository } from "../../repository/config.ts";
import { openLayer } from "../../repository/layer-reader.ts";
import { ZERO_PACK } from "../../repository/layer-runs.ts";
import type { LayerRef } from "../../repository/layer-writer.ts";
import { PackMarks } from "./pack-marks.ts";
import { unreadable, type RootLayer, type Roots } from "./roots.ts";

/** Layers read at once, and decoded blocks kept of each. */
const LAYERS_MAX = 8;
const CACHE_BYTES = 2 * MiB;

/** What may not be deleted: everything that the manifests mention that were read so far. Only ever grows. */
export class Live {
  /** A bit for each slot that any layer mentions, hidden by a layer above or not (FORMAT.md, "Collection"). */
  readonly packs = new PackMarks();
  /** Every layer that a manifest names. */
  readonly layers = new Set<string>();
}

/**
 * Marks what the roots reach. Each layer is read once, however many generations share it and however often this is
 * called; memory is that of the marks and a few blocks of the layers that are being read.
 *
 * @returns how many layers were read.
 * @throws AppError E_PRUNE_UNREADABLE, E_PACK_CONFLICT (corrupt), E_LAYER_VERSION (usage); errors of the store.
 */
export async function markLive(
  repository: Repository,
  live: Live,
  roots: Pick<Roots, "layers">,
  warn: (message: string) => void,
  run: AbortController,
): Promise<number> {
  const unread = [...roots.layers.values()].filter(({ ref }) => !live.layers.has(ref.layer));
  for (const { ref } of unread) live.layers.add(ref.layer);
  const reads = mapOrdered(unread, LAYERS_MAX, run, async (root, signal) => {
    await markLayer(repository, root.ref, live.packs, signal).catch((error: unknown) => {
      tolerate(root, error, warn);
      live.layers.delete(root.ref.layer); // read again, should it come to be needed
    });
  });
  await drain(reads);
  return unread.length;
}

/** Marks what one layer mentions. @throws as `openLayer`, and E_PACK_CONFLICT (corrupt). */
export async function markLayer(
  repository: Repository,
  ref: LayerRef,
  packs: PackMarks,
  signal: AbortSignal,
): Promise<void> {
  const layer = await openLayer(repository, ref, signal, new BlockCache(CACHE_BYTES));
  /** Number among the marks, by number in the layer's table. */
  const numbers = new Map<number, number>();
  for (const index of layer.segments.keys()) {
    const table = await layer.segment(index, signal);
    for (let at = 0; at < table.length; at++) {
      const pack = table.pack(at);
      if (pack === ZERO_PACK) continue;
      const [slot, count] = [table.slot(at), table.count(at)];
      let number = numbers.get(pack);
      if (number === undefined) {
        number = packs.enter(await layer.packOf({ pack, slot, count }, signal));
        numbers.set(pack, number);
      } else if (slot + count > packs.slotCount(number)) {
        await layer.packOf({ pack, slot, count }, signal); // says what is wrong
      }
      packs.mark(number, slot, count);
    }
  }
}

/** A forgotten generation whose layers are damaged cannot come back: it must not keep everybody from pruning. */
function tolerate(
  { ref, namedBy, needed }: RootLayer,
  error: unknown,
  warn: (message: string) => void,
): void {
  if (needed) throw unreadable(`layer ${ref.layer} of ${namedBy}`, error);
  if (!(error instanceof AppError) || error.kind !== "corrupt") throw error;
  warn(`A forgotten generation cannot be brought back (${namedBy}): ${error.message}`);
}
