import { constants, zstdCompressSync, zstdDecompressSync } from "node:zlib";
import { ByteReader, ByteWriter } from "../bytes/cursor.ts";
import { KiB, MiB } from "../bytes/size.ts";
import { WINDOW_LOG_MAX } from "../chunk/decompressor.ts";
import { chunkCount } from "../chunk/grid.ts";
import { AppError, type ErrorContext } from "../errors.ts";
import { RunTable, ZERO_PACK } from "./layer-runs.ts";
import { DISK_SIZE_MAX } from "./manifest.ts";
import { uuidBytes, uuidText } from "./names.ts";
import type { PackRef } from "./pack-directory.ts";

/*
 * The pieces of a layer object (FORMAT.md, "Layer"), each with its encoder and decoder: header, segments, pack
 * pages, footer, trailer, in this order. Nothing here seals, hashes or does I/O.
 */

/** Size of a disk and of its chunks, in bytes. */
export interface DiskGeometry {
  /** 0 to 64 TiB. */
  readonly size: number;
  /** A power of two, 64 KiB to 4 MiB. */
  readonly chunkSize: number;
}

/** Consecutive chunks of a disk: zeros, or in consecutive slots of one pack. */
export interface MapRun {
  readonly first: number;
  /** Chunks, >= 1. */
  readonly count: number;
  /** `slot` holds the first chunk. */
  readonly where: "zero" | { readonly packRef: PackRef; readonly slot: number };
}

export const LAYER_MAGIC = Buffer.from("BLKHLAYR", "latin1");
export const LAYER_VERSION = 1;
/** Magic, u16 version, 6 bytes of zero. */
export const HEADER_SIZE = 16;
/** u32 length of the stored footer, u16 version, u16 zero, magic. */
export const TRAILER_SIZE = 16;

/** Most runs in one segment. All but the last have exactly as many. */
export const SEGMENT_RUNS_MAX = 65_536;
/** Five varints of at most five bytes for each run. */
export const SEGMENT_RAW_MAX = SEGMENT_RUNS_MAX * 25;
/** A stored segment is no longer than its raw form with zstd's frame and a seal. */
const SEGMENT_STORED_MAX = SEGMENT_RAW_MAX + 16 * KiB;
export const PACKS_PER_PAGE = 4096;
/** UUID, SHA-256 of the directory, u32 slots, u64 bytes of blobs. */
export const PACK_ENTRY_SIZE = 60;
/** A full page with its seal. */
const PAGE_STORED_MAX = PACKS_PER_PAGE * PACK_ENTRY_SIZE + KiB;
const PACKS_MAX = 1 << 24;
/** Room for a disk of 2^30 runs and for the pages of `PACKS_MAX` packs. */
export const FOOTER_MAX = 2 * MiB;

export function encodeHeader(): Buffer {
  return new ByteWriter(HEADER_SIZE).bytes(LAYER_MAGIC).u16(LAYER_VERSION).bytes(Buffer.alloc(6)).finish();
}

/** A segment: its runs compressed, and what the footer says of it. */
export interface PackedSegment {
  readonly first: number;
  /** The chunk after the last one mentioned. */
  readonly end: number;
  readonly runs: number;
  /** Bytes before compression. */
  readonly rawLength: number;
  readonly compressed: Buffer;
}

/**
 * Packs the runs of one segment. Decodes what it encoded before it returns: a fault found now costs nothing, while
 * the disk is still there.
 */
export function packSegment(runs: RunTable): PackedSegment {
  const raw = encodeRuns(runs);
  const compressed = zstdCompressSync(raw, { pledgedSrcSize: raw.length, chunkSize: raw.length + KiB });
  const last = runs.length - 1;
  const packed = {
    first: runs.first(0),
    end: runs.end(last),
    runs: runs.length,
    rawLength: raw.length,
    compressed,
  };
  if (!unpackSegment(compressed, packed, ZERO_PACK, "new segment").equals(runs)) {
    throw new AppError(
      "bug",
      "E_LAYER_READ_BACK",
      "A segment of a layer does not decode to what was encoded",
    );
  }
  return packed;
}

/**
 * @param expected what the footer says; `rawLength` bounds the memory taken.
 * @param packs packs in the layer's table: every number must be below.
 * @param what names the segment in errors.
 * @throws AppError (corrupt).
 */
export function unpackSegment(
  compressed: Uint8Array,
  expected: Omit<PackedSegment, "compressed">,
  packs: number,
  what: string,
): RunTable {
  let raw: Buffer;
  try {
    raw = zstdDecompressSync(compressed, {
      params: { [constants.ZSTD_d_windowLogMax]: WINDOW_LOG_MAX },
      maxOutputLength: expected.rawLength,
    });
  } catch (error) {
    throw damaged(what, "it does not decompress", {}, error);
  }
  if (raw.length !== expected.rawLength) throw damaged(what, "it decompresses to another length");
  const runs = decodeRuns(raw, expected, packs, what);
  if (runs.end(runs.length - 1) !== expected.end)
    throw damaged(what, "it ends at another chunk than the index says");
  return runs;
}

/**
 * For each run: gap to the end of the run before (0 for the first), 2 * (count - 1) + 1 for zeros; and for the
 * others the pack's number and the slot, as signed differences from where the data run before it ended.
 */
function encodeRuns(runs: RunTable): Buffer {
  const writer = new ByteWriter(runs.length * 6);
  let end = runs.first(0);
  let pack = 0;
  let slot = 0;
  for (let run = 0; run < runs.length; run++) {
    const zero = runs.pack(run) === ZERO_PACK;
    writer.varint(runs.first(run) - end).varint((runs.count(run) - 1) * 2 + (zero ? 1 : 0));
    end = runs.end(run);
    if (zero) continue;
    const step = runs.pack(run) - pack;
    if (step !== 0) slot = 0; // another pack's slots have nothing to do with this one's
    writer.varint(zigzag(step)).varint(zigzag(runs.slot(run) - slot));
    pack = runs.pack(run);
    slot = runs.slot(run) + runs.count(run);
  }
  return writer.finish();
}

function decodeRuns(
  raw: Uint8Array,
  expected: { first: number; end: number; runs: number },
  packs: number,
  what: string,
): RunTable {
  const reader = new ByteReader(raw, what);
  const runs = new RunTable(expected.runs);
  let end = expected.first;
  let pack = 0;
  let slot = 0;
  for (let run = 0; run < expected.runs; run++) {
    const first = end + reader.varint();
    const shape = reader.varint();
    const count = Math.floor(shape / 2) + 1;
    end = first + count;
    if (end > expected.end || (run === 0 && first !== expected.first)) {
      throw damaged(what, "a run lies outside of it", { run, first, count });
    }
    if (shape % 2 === 1) {
      runs.push(first, count, ZERO_PACK, 0);
      continue;
    }
    const step = unzigzag(reader.varint());
    if (step !== 0) slot = 0;
    pack += step;
    slot += unzigzag(reader.varint());
    if (pack < 0 || pack >= packs)
      throw damaged(what, "a run names a pack that is not in the table", { run, pack });
    if (slot < 0 || slot + count > ZERO_PACK)
      throw damaged(what, "a run names an impossible slot", { run, slot });
    runs.push(first, count, pack, slot);
    slot += count;
  }
  reader.end();
  return runs;
}

function zigzag(value: number): number {
  return value >= 0 ? value * 2 : -value * 2 - 1;
}

function unzigzag(value: number): number {
  return value % 2 === 0 ? value / 2 : -(value + 1) / 2;
}

/** One page of the pack table. @param refs at most `PACKS_PER_PAGE`. */
export function encodePackPage(refs: readonly PackRef[]): Buffer {
  const writer = new ByteWriter(refs.length * PACK_ENTRY_SIZE);
  for (const ref of refs) {
    writer.bytes(uuidBytes(ref.pack)).bytes(ref.digest).u32(ref.slotCount).u64(ref.blobBytes);
  }
  return writer.finish();
}

/** Entry `index` of a page. The digest is a view on the page. @throws AppError (corrupt). */
export function packPageEntry(page: Buffer, index: number, what: string): PackRef {
  const reader = new ByteReader(page.subarray(index * PACK_ENTRY_SIZE), what);
  return {
    pack: uuidText(reader.bytes(16)),
    digest: reader.bytes(32),
    slotCount: reader.u32(),
    blobBytes: reader.u64(),
  };
}

/** A stored block of the object: a segment or a page of the pack table. */
export interface StoredBlock {
  readonly storedLength: number;
  /** SHA-256 of the stored bytes. */
  readonly digest: Buffer;
}

export interface SegmentEntry extends StoredBlock {
  readonly first: number;
  readonly end: number;
  readonly runs: number;
  readonly rawLength: number;
}

export interface LayerFooter extends DiskGeometry {
  /** Packs in the table. */
  readonly packs: number;
  /** In the order of the object and of chunks. */
  readonly segments: readonly SegmentEntry[];
  /** Follow the segments; each but the last holds `PACKS_PER_PAGE` packs. */
  readonly pages: readonly StoredBlock[];
}

export function encodeFooter(footer: LayerFooter): Buffer {
  const writer = new ByteWriter()
    .u64(footer.size)
    .u32(footer.chunkSize)
    .u32(footer.packs)
    .u32(footer.segments.length);
  for (const segment of footer.segments) {
    writer.u32(segment.first).u32(segment.end).u32(segment.runs).u32(segment.rawLength);
    writer.u32(segment.storedLength).bytes(segment.digest);
  }
  for (const page of footer.pages) writer.u32(page.storedLength).bytes(page.digest);
  return writer.finish();
}

/**
 * @param blockBytes stored bytes between header and footer, which the blocks must fill exactly.
 * @param what names the layer in errors.
 * @throws AppError (corrupt).
 */
export function decodeFooter(bytes: Uint8Array, blockBytes: number, what: string): LayerFooter {
  const reader = new ByteReader(bytes, what);
  const geometry = { size: reader.u64(), chunkSize: reader.u32() };
  checkGeometry(geometry, what);
  const packs = reader.u32();
  if (packs > PACKS_MAX) throw damaged(what, "its pack table is too large", { packs });
  const chunks = chunkCount(geometry.size, geometry.chunkSize);
  const count = reader.u32();
  const segments: SegmentEntry[] = [];
  for (let index = 0; index < count; index++) {
    segments.push(decodeSegmentEntry(reader, segments[index - 1]?.end ?? 0, chunks, what));
  }
  const pages: StoredBlock[] = [];
  while (pages.length < Math.ceil(packs / PACKS_PER_PAGE)) {
    const page = { storedLength: reader.u32(), digest: reader.bytes(32) };
    if (page.storedLength > PAGE_STORED_MAX) throw damaged(what, "its index holds an impossible page");
    pages.push(page);
  }
  reader.end();
  const listed = [...segments, ...pages].reduce((sum, block) => sum + block.storedLength, 0);
  if (listed !== blockBytes) throw damaged(what, "its blocks do not fill the object", { listed, blockBytes });
  return { ...geometry, packs, segments, pages };
}

function decodeSegmentEntry(reader: ByteReader, after: number, chunks: number, what: string): SegmentEntry {
  const entry: SegmentEntry = {
    first: reader.u32(),
    end: reader.u32(),
    runs: reader.u32(),
    rawLength: reader.u32(),
    storedLength: reader.u32(),
    digest: reader.bytes(32),
  };
  const bounded =
    entry.first >= after &&
    entry.end <= chunks &&
    entry.runs >= 1 &&
    entry.runs <= Math.min(SEGMENT_RUNS_MAX, entry.end - entry.first) &&
    entry.rawLength <= SEGMENT_RAW_MAX &&
    entry.storedLength <= SEGMENT_STORED_MAX;
  if (!bounded)
    throw damaged(what, "its index holds an impossible segment", { first: entry.first, end: entry.end });
  return entry;
}

/** Packs in page `page` of a table of `packs`. */
export function packsInPage(packs: number, page: number): number {
  return Math.min(PACKS_PER_PAGE, packs - page * PACKS_PER_PAGE);
}

/** @throws AppError E_LAYER (corrupt) outside of the limits. */
function checkGeometry({ size, chunkSize }: DiskGeometry, what: string): void {
  const powerOfTwo = 2 ** Math.round(Math.log2(chunkSize)) === chunkSize;
  if (size > DISK_SIZE_MAX || chunkSize < 64 * KiB || chunkSize > 4 * MiB || !powerOfTwo) {
    throw damaged(what, "its disk or chunk size is out of range", { size, chunkSize });
  }
}

export function encodeTrailer(footerLength: number): Buffer {
  return new ByteWriter(TRAILER_SIZE).u32(footerLength).u16(LAYER_VERSION).u16(0).bytes(LAYER_MAGIC).finish();
}

/** The length of the stored footer, and the version: both are checked by whoever knows the digest. */
export function decodeTrailer(bytes: Uint8Array, what: string): { footerLength: number; version: number } {
  const reader = new ByteReader(bytes, what);
  const footerLength = reader.u32();
  const version = reader.u16();
  reader.u16();
  if (!reader.bytes(8).equals(LAYER_MAGIC)) throw damaged(what, "it does not end like a layer");
  if (footerLength > FOOTER_MAX) throw damaged(what, "its index is too long", { footerLength });
  return { footerLength, version };
}

/** @param what names the layer or its part: "layer 0190…". */
export function damaged(what: string, why: string, context: ErrorContext = {}, cause?: unknown): AppError {
  return new AppError("corrupt", "E_LAYER", `The ${what} is damaged: ${why}`, context, cause);
}
