import { hash } from "node:crypto";
import { chunkCount } from "../chunk/grid.ts";
import type { BlockCache } from "./block-cache.ts";
import { ZERO_PACK, type RunTable } from "./layer-runs.ts";
import type { LayerRef } from "./layer-writer.ts";
import {
  damaged,
  encodeHeader,
  HEADER_SIZE,
  packPageEntry,
  packsInPage,
  PACK_ENTRY_SIZE,
  PACKS_PER_PAGE,
  unpackSegment,
  type DiskGeometry,
  type LayerFooter,
  type MapRun,
  type SegmentEntry,
  type StoredBlock,
} from "./layer.ts";
import { layerKey } from "./names.ts";
import type { PackRef } from "./pack-directory.ts";
import type { Sealer } from "./sealing.ts";

/** Bytes of a layer object, from the store or from memory. */
export interface LayerBytes {
  /** The last `length` bytes, or all when there are less, and the object's size. */
  tail(length: number, signal: AbortSignal): Promise<{ bytes: Buffer; size: number }>;
  range(offset: number, length: number, signal: AbortSignal): Promise<Buffer>;
}

/** A page of the pack table; entries become objects when they are asked for. */
interface PackPage {
  readonly bytes: Buffer;
  readonly refs: (PackRef | undefined)[];
}

/** Memory of a pack's entry and of the object made from it, roughly. */
const PACK_ENTRY_WEIGHT = PACK_ENTRY_SIZE + 300;

/**
 * An open layer: its index is in memory, its segments and pages are read when they are needed and kept in a
 * bounded cache. Calls may overlap.
 *
 * Every method that reads throws AppError E_LAYER, E_SEAL (corrupt) for bytes that are not what the index says,
 * and the errors of the store.
 */
export class Layer implements DiskGeometry {
  readonly ref: LayerRef;
  /** Of the disk when the layer was written, bytes. */
  readonly size: number;
  readonly chunkSize: number;
  /** Chunks of that disk. */
  readonly chunks: number;
  /** What the index says of the segments, in the order of chunks. */
  readonly segments: readonly SegmentEntry[];
  readonly #pages: readonly StoredBlock[];
  readonly #packs: number;
  /** Where each block begins in the object: the segments', then the pages'. */
  readonly #offsets: Float64Array;
  readonly #bytes: LayerBytes;
  readonly #sealer: Sealer;
  readonly #cache: BlockCache;

  constructor(ref: LayerRef, footer: LayerFooter, bytes: LayerBytes, sealer: Sealer, cache: BlockCache) {
    this.ref = ref;
    this.size = footer.size;
    this.chunkSize = footer.chunkSize;
    this.chunks = chunkCount(footer.size, footer.chunkSize);
    this.segments = footer.segments;
    this.#pages = footer.pages;
    this.#packs = footer.packs;
    this.#bytes = bytes;
    this.#sealer = sealer;
    this.#cache = cache;
    this.#offsets = new Float64Array(footer.segments.length + footer.pages.length);
    let offset = HEADER_SIZE;
    for (const [number, block] of [...footer.segments, ...footer.pages].entries()) {
      this.#offsets[number] = offset;
      offset += block.storedLength;
    }
  }

  /** Names it in errors. */
  get name(): string {
    return `layer ${this.ref.layer}`;
  }

  /** The runs of a segment. */
  async segment(index: number, signal: AbortSignal): Promise<RunTable> {
    const key = this.#cacheKey(index);
    const known = this.#cache.get(key) as RunTable | undefined;
    if (known !== undefined) return known;
    const entry = this.segments[index]!;
    const what = `segment ${index} of ${this.name}`;
    const runs = unpackSegment(await this.#read(index, entry, signal), entry, this.#packs, what);
    this.#cache.set(key, runs, runs.weight);
    return runs;
  }

  /** The pack with this number, if its page is in memory. */
  knownPack(number: number): PackRef | undefined {
    const page = this.#cache.get(this.#pageKey(number)) as PackPage | undefined;
    return page === undefined ? undefined : this.#entry(page, number % PACKS_PER_PAGE);
  }

  /** @param number as a run of this layer has it. */
  async pack(number: number, signal: AbortSignal): Promise<PackRef> {
    const known = this.knownPack(number);
    if (known !== undefined) return known;
    return this.#entry(
      await this.#loadPage(Math.floor(number / PACKS_PER_PAGE), signal),
      number % PACKS_PER_PAGE,
    );
  }

  /** Every pack in the table, whether a run names it or not. */
  async *packs(signal: AbortSignal): AsyncGenerator<PackRef, void> {
    for (let number = 0; number < this.#packs; number++) yield await this.pack(number, signal);
  }

  /** What it mentions of the chunks `from` to `to` - 1, in order; of the others it says nothing. */
  async *runs(from: number, to: number, signal: AbortSignal): AsyncGenerator<MapRun, void> {
    if (from >= to) return; // else a run around `from` would answer with none of its chunks
    for (const [index, entry] of this.segments.entries()) {
      if (entry.end <= from) continue;
      if (entry.first >= to) return;
      const table = await this.segment(index, signal);
      for (let run = table.find(from); run < table.length && table.first(run) < to; run++) {
        signal.throwIfAborted();
        const first = Math.max(table.first(run), from);
        const count = Math.min(table.end(run), to) - first;
        const pack = table.pack(run);
        const slot = table.slot(run) + first - table.first(run);
        if (pack === ZERO_PACK) yield { first, count, where: "zero" };
        else
          yield { first, count, where: { packRef: await this.packOf({ pack, slot, count }, signal), slot } };
      }
    }
  }

  /**
   * The pack that a run of data names.
   * @throws AppError E_LAYER (corrupt): the run names slots that the pack does not have.
   */
  async packOf(run: { pack: number; slot: number; count: number }, signal: AbortSignal): Promise<PackRef> {
    const packRef = this.knownPack(run.pack) ?? (await this.pack(run.pack, signal));
    if (run.slot + run.count <= packRef.slotCount) return packRef;
    throw damaged(this.name, `it names slots that pack ${packRef.pack} does not have`, {
      slot: run.slot,
      count: run.count,
      slotCount: packRef.slotCount,
    });
  }

  /** Reads all of it, what nobody looks at included. @throws AppError (corrupt) when any bit is not as written. */
  async verify(signal: AbortSignal): Promise<void> {
    if (!(await this.#bytes.range(0, HEADER_SIZE, signal)).equals(encodeHeader())) {
      throw damaged(this.name, "it does not begin like a layer");
    }
    await drain(this.runs(0, this.chunks, signal));
    await drain(this.packs(signal));
  }

  #entry(page: PackPage, index: number): PackRef {
    return (page.refs[index] ??= packPageEntry(page.bytes, index, this.name));
  }

  async #loadPage(index: number, signal: AbortSignal): Promise<PackPage> {
    const bytes = await this.#read(this.segments.length + index, this.#pages[index]!, signal);
    const packs = packsInPage(this.#packs, index);
    if (bytes.length !== packs * PACK_ENTRY_SIZE)
      throw damaged(this.name, "a page of its pack table is cut off");
    const page: PackPage = { bytes, refs: new Array<PackRef | undefined>(packs) };
    this.#cache.set(this.#cacheKey(this.segments.length + index), page, packs * PACK_ENTRY_WEIGHT);
    return page;
  }

  #pageKey(pack: number): string {
    return this.#cacheKey(this.segments.length + Math.floor(pack / PACKS_PER_PAGE));
  }

  #cacheKey(block: number): string {
    return `${this.ref.layer}#${block}`;
  }

  /** A block's bytes, checked and opened. */
  async #read(number: number, block: StoredBlock, signal: AbortSignal): Promise<Buffer> {
    signal.throwIfAborted();
    const stored = await this.#bytes.range(this.#offsets[number]!, block.storedLength, signal);
    if (!hash("sha256", stored, "buffer").equals(block.digest)) {
      throw damaged(this.name, `its block ${number} is not the one that its index names`);
    }
    return this.#sealer.openObject("layer", `${layerKey(this.ref.layer)}#${number}`, stored);
  }
}

/** Reads to the end for the sake of the checks on the way. */
async function drain(items: AsyncIterator<unknown>): Promise<void> {
  while ((await items.next()).done !== true);
}
