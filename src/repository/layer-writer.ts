import { createHash, hash } from "node:crypto";
import { Readable } from "node:stream";
import { MiB } from "../bytes/size.ts";
import { chunkCount } from "../chunk/grid.ts";
import { AppError } from "../errors.ts";
import type { Repository } from "./config.ts";
import { RunTable, ZERO_PACK } from "./layer-runs.ts";
import {
  encodeFooter,
  encodeHeader,
  encodePackPage,
  encodeTrailer,
  packSegment,
  PACKS_PER_PAGE,
  SEGMENT_RUNS_MAX,
  TRAILER_SIZE,
  type DiskGeometry,
  type PackedSegment,
  type SegmentEntry,
  type StoredBlock,
} from "./layer.ts";
import { layerKey, newUuid } from "./names.ts";
import type { PackRef } from "./pack-directory.ts";
import type { Sealer } from "./sealing.ts";

/** How a manifest names a layer. */
export interface LayerRef {
  /** UUID. */
  readonly layer: string;
  /** SHA-256 of the stored footer and trailer, hex; these hold the digests of everything else. */
  readonly digest: string;
  /** Bytes of the whole object. */
  readonly storedBytes: number;
}

/** Where chunks live: zero, or in consecutive slots of a pack. */
export type Where = "zero" | { readonly pack: string; readonly slot: number };

/** A pack that a layer names. */
export interface WrittenPack {
  /** Its place in the layer's pack table. */
  readonly number: number;
  /** The slot after the highest one used. */
  slotEnd: number;
}

/** Layers up to this long go in one request. */
export const PUT_MAX = 8 * MiB;

/**
 * Collects what a run found out about a disk, in ascending order of chunks.
 *
 * Runs that touch become one. What is kept is the compressed segments (about 5 bytes a run before compression),
 * one segment's runs (1 MiB) and the names of the packs; the packs' digests are asked for at the end, when all of
 * them are complete.
 */
export class LayerWriter {
  readonly geometry: DiskGeometry;
  readonly #chunks: number;
  readonly #packs = new Map<string, WrittenPack>();
  readonly #runs = new RunTable(1024);
  #segments: PackedSegment[] = [];
  #end = 0;
  /** Everything from here to `#end` is mentioned. */
  #stretch = 0;
  #mentioned = 0;

  /** Both in bytes. */
  constructor(diskSize: number, chunkSize: number) {
    this.geometry = { size: diskSize, chunkSize };
    this.#chunks = chunkCount(diskSize, chunkSize);
  }

  /** Chunks added so far. */
  get mentioned(): number {
    return this.#mentioned;
  }

  /** True when every chunk from `chunk` to the disk's end was added. */
  mentionsAllFrom(chunk: number): boolean {
    return this.#end === this.#chunks && this.#stretch <= chunk;
  }

  /** The packs added so far, by UUID, in the order of their numbers. */
  get packs(): ReadonlyMap<string, Readonly<WrittenPack>> {
    return this.#packs;
  }

  /**
   * @param chunk at or after the end of what was added before.
   * @param count >= 1; inside the disk.
   * @throws AppError E_LAYER_ORDER (bug).
   */
  add(chunk: number, count: number, where: Where): void {
    if (chunk < this.#end || count < 1 || chunk + count > this.#chunks) {
      throw new AppError(
        "bug",
        "E_LAYER_ORDER",
        `Chunks ${chunk} to ${chunk + count} do not fit into the layer`,
        {
          end: this.#end,
          chunks: this.#chunks,
        },
      );
    }
    const pack = where === "zero" ? ZERO_PACK : this.#packNumber(where.pack, where.slot + count);
    const slot = where === "zero" ? 0 : where.slot;
    if (chunk === this.#end && this.#continues(pack, slot)) {
      this.#runs.extend(count);
    } else {
      if (this.#runs.length === SEGMENT_RUNS_MAX) this.#closeSegment();
      this.#runs.push(chunk, count, pack, slot);
    }
    if (chunk > this.#end) this.#stretch = chunk;
    this.#end = chunk + count;
    this.#mentioned += count;
  }

  /** Hands over the segments that are full, in order, so that a long layer can be sent while it grows. */
  takeSegments(): readonly PackedSegment[] {
    const taken = this.#segments;
    this.#segments = [];
    return taken;
  }

  /** The rest of the segments. Nothing may be added after it. */
  takeLast(): readonly PackedSegment[] {
    if (this.#runs.length > 0) this.#closeSegment();
    return this.takeSegments();
  }

  #continues(pack: number, slot: number): boolean {
    const last = this.#runs.length - 1;
    if (last < 0 || this.#runs.pack(last) !== pack) return false;
    return pack === ZERO_PACK || this.#runs.slot(last) + this.#runs.count(last) === slot;
  }

  #packNumber(pack: string, slotEnd: number): number {
    let known = this.#packs.get(pack);
    if (known === undefined) {
      known = { number: this.#packs.size, slotEnd };
      this.#packs.set(pack, known);
    }
    known.slotEnd = Math.max(known.slotEnd, slotEnd);
    return known.number;
  }

  #closeSegment(): void {
    this.#segments.push(packSegment(this.#runs));
    this.#runs.clear();
  }
}

/**
 * Turns a writer's segments into the bytes of one object, front to back: header, segments, pack pages, footer,
 * trailer. The pack table stands behind the segments, since runs are written as they come and the table is known
 * last.
 */
export class LayerStream {
  readonly layer: string = newUuid();
  readonly #sealer: Sealer;
  readonly #writer: LayerWriter;
  readonly #segments: SegmentEntry[] = [];
  readonly #pages: StoredBlock[] = [];
  #storedBytes = 0;
  #digest: string | undefined;

  constructor(writer: LayerWriter, sealer: Sealer) {
    this.#writer = writer;
    this.#sealer = sealer;
  }

  /** What the manifest says of the object. @throws AppError E_LAYER_OPEN (bug) before `end` was read through. */
  get ref(): LayerRef {
    if (this.#digest === undefined)
      throw new AppError("bug", "E_LAYER_OPEN", "The layer is not written to its end");
    return { layer: this.layer, digest: this.#digest, storedBytes: this.#storedBytes };
  }

  header(): Buffer {
    return this.#sent(encodeHeader());
  }

  /** The segments that are full by now. */
  *full(): Generator<Buffer, void> {
    for (const segment of this.#writer.takeSegments()) yield this.#segment(segment);
  }

  /** Everything else. @param packRef of every pack that was added; each must be complete (R11). */
  *end(packRef: (pack: string) => PackRef): Generator<Buffer, void> {
    for (const segment of this.#writer.takeLast()) yield this.#segment(segment);
    let page: PackRef[] = [];
    let packs = 0;
    for (const [pack, { slotEnd }] of this.#writer.packs) {
      page.push(checkedRef(packRef(pack), pack, slotEnd));
      packs += 1;
      if (page.length < PACKS_PER_PAGE) continue;
      yield this.#page(page);
      page = [];
    }
    if (page.length > 0) yield this.#page(page);
    const footer = encodeFooter({
      ...this.#writer.geometry,
      packs,
      segments: this.#segments,
      pages: this.#pages,
    });
    const stored = this.#sealer.sealObject("layer", layerKey(this.layer), footer);
    const trailer = encodeTrailer(stored.length);
    this.#digest = createHash("sha256").update(stored).update(trailer).digest("hex");
    yield this.#sent(Buffer.concat([stored, trailer], stored.length + TRAILER_SIZE));
  }

  #segment(segment: PackedSegment): Buffer {
    const { compressed, ...said } = segment;
    const stored = this.#seal(compressed);
    this.#segments.push({ ...said, storedLength: stored.length, digest: hash("sha256", stored, "buffer") });
    return this.#sent(stored);
  }

  #page(refs: readonly PackRef[]): Buffer {
    const stored = this.#seal(encodePackPage(refs));
    this.#pages.push({ storedLength: stored.length, digest: hash("sha256", stored, "buffer") });
    return this.#sent(stored);
  }

  /** Sealed for its place in the object: blocks are numbered from 0. */
  #seal(plain: Buffer): Buffer {
    const number = this.#segments.length + this.#pages.length;
    return this.#sealer.sealObject("layer", `${layerKey(this.layer)}#${number}`, plain);
  }

  #sent(bytes: Buffer): Buffer {
    this.#storedBytes += bytes.length;
    return bytes;
  }
}

/** A manifest must never name a slot that is not there. @throws AppError E_LAYER_SLOT (bug). */
function checkedRef(ref: PackRef, pack: string, slotEnd: number): PackRef {
  if (ref.pack === pack && slotEnd <= ref.slotCount) return ref;
  throw new AppError("bug", "E_LAYER_SLOT", `The layer names slots that pack ${pack} does not have`, {
    slotEnd,
    slotCount: ref.slotCount,
  });
}

/** A whole layer in memory: what a backup writes, small unless the disk is huge and fragmented. */
export function encodeLayer(
  writer: LayerWriter,
  sealer: Sealer,
  packRef: (pack: string) => PackRef,
): { readonly ref: LayerRef; readonly parts: readonly Buffer[] } {
  const stream = new LayerStream(writer, sealer);
  const parts = [stream.header(), ...stream.full(), ...stream.end(packRef)];
  return { ref: stream.ref, parts };
}

/**
 * Stores an encoded layer: in one request, or in parts when it is longer than `PUT_MAX`.
 * @throws AppError of the store. The name is fresh: a failed attempt leaves nothing that is ever referenced (R4).
 */
export async function putLayer(
  repository: Repository,
  encoded: { readonly ref: LayerRef; readonly parts: readonly Buffer[] },
  signal: AbortSignal,
): Promise<LayerRef> {
  const key = layerKey(encoded.ref.layer);
  if (encoded.ref.storedBytes <= PUT_MAX)
    await repository.store.put(key, Buffer.concat(encoded.parts), signal);
  else await repository.store.putStream(key, Readable.from(encoded.parts), signal);
  return encoded.ref;
}

/** Encodes and stores what the writer holds. @param packRef of every pack added; each must be complete (R11). */
export async function storeLayer(
  repository: Repository,
  writer: LayerWriter,
  packRef: (pack: string) => PackRef,
  signal: AbortSignal,
): Promise<LayerRef> {
  return putLayer(repository, encodeLayer(writer, repository.sealer, packRef), signal);
}
