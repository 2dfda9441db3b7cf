import { chunkLength } from "../chunk/grid.ts";
import type { Layer } from "./layer-object.ts";
import { ZERO_PACK, type RunTable } from "./layer-runs.ts";
import { damaged, type DiskGeometry } from "./layer.ts";

/** What a stack says of a range: `nothing` when no layer mentions it and no layer's end decides it. */
export type Answer =
  | { readonly is: "nothing" | "zero"; readonly first: number; readonly count: number }
  | {
      readonly is: "data";
      readonly first: number;
      readonly count: number;
      readonly layer: Layer;
      /** In that layer's table. */
      readonly pack: number;
      readonly slot: number;
    };

/** Moves forward over the runs of one layer, with one segment in hand. */
class LayerCursor {
  readonly layer: Layer;
  #segment = 0;
  #table: RunTable | undefined;
  #run = 0;

  constructor(layer: Layer) {
    this.layer = layer;
  }

  /**
   * Goes to the first run that ends after `chunk`, which never decreases.
   * @returns false when a segment must be loaded first.
   */
  seek(chunk: number): boolean {
    const { segments } = this.layer;
    while (this.#segment < segments.length && segments[this.#segment]!.end <= chunk) {
      this.#segment += 1;
      this.#table = undefined;
      this.#run = 0;
    }
    const segment = segments[this.#segment];
    // What begins further down need not be loaded: the index tells where.
    if (segment === undefined || segment.first > chunk) return true;
    if (this.#table === undefined) return false;
    this.#run = this.#table.find(chunk, this.#run);
    return true;
  }

  async load(signal: AbortSignal): Promise<void> {
    this.#table = await this.layer.segment(this.#segment, signal);
  }

  /** Where the run begins; past every chunk when there is none. */
  get first(): number {
    if (this.#table !== undefined) return this.#table.first(this.#run);
    return this.layer.segments[this.#segment]?.first ?? Infinity;
  }

  get end(): number {
    return this.#table!.end(this.#run);
  }

  get pack(): number {
    return this.#table!.pack(this.#run);
  }

  /** The slot of `chunk`, which lies in the run. */
  slotOf(chunk: number): number {
    return this.#table!.slot(this.#run) + chunk - this.#table!.first(this.#run);
  }
}

/**
 * Looks every chunk of a range up in a stack of layers: the newest mention wins, and at or beyond the end of a
 * layer's disk that layer answers zero and nothing older is asked (R9).
 *
 * @param layers newest first; their chunk sizes are the same.
 * @param disk whose chunks are meant; its size decides how long the last one is.
 * @returns covers the range without gaps, in order; memory is one segment a layer.
 * @throws AppError E_LAYER (corrupt): also when a short chunk at the end of an older, smaller or larger disk would
 *   have to stand for one of another length, which a valid stack never needs (R9).
 */
export async function* walkLayers(
  layers: readonly Layer[],
  disk: DiskGeometry,
  from: number,
  to: number,
  signal: AbortSignal,
): AsyncGenerator<Answer, void> {
  const cursors = layers.map((layer) => new LayerCursor(layer));
  for (let at = from; at < to;) {
    signal.throwIfAborted();
    for (const cursor of cursors) if (!cursor.seek(at)) await loadAt(cursor, at, signal);
    const answer = answerAt(cursors, at, to);
    if (answer.is === "data") checkTail(answer.layer, disk, answer.first + answer.count - 1);
    yield answer;
    at += answer.count;
  }
}

async function loadAt(cursor: LayerCursor, chunk: number, signal: AbortSignal): Promise<void> {
  await cursor.load(signal);
  cursor.seek(chunk);
}

function answerAt(cursors: readonly LayerCursor[], at: number, to: number): Answer {
  let end = to; // up to here the same layers are asked and none of the newer ones mentions anything
  for (const cursor of cursors) {
    const { layer } = cursor;
    if (at >= layer.chunks) return { is: "zero", first: at, count: end - at };
    end = Math.min(end, layer.chunks);
    if (cursor.first > at) {
      end = Math.min(end, cursor.first);
      continue;
    }
    const count = Math.min(end, cursor.end) - at;
    if (cursor.pack === ZERO_PACK) return { is: "zero", first: at, count };
    return { is: "data", first: at, count, layer, pack: cursor.pack, slot: cursor.slotOf(at) };
  }
  return { is: "nothing", first: at, count: end - at };
}

/** Only the last chunk of a disk can be short, so the last one of a run tells. */
function checkTail(layer: Layer, disk: DiskGeometry, last: number): void {
  if (chunkLength(last, layer.size, layer.chunkSize) === chunkLength(last, disk.size, disk.chunkSize)) return;
  throw damaged(layer.name, `its last chunk ${last} was not stored again when the disk's size changed`, {
    layerSize: layer.size,
    diskSize: disk.size,
  });
}
