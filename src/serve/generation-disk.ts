import { MiB } from "../bytes/size.ts";
import { chunkLength } from "../chunk/grid.ts";
import type { BlockSize, Extent, Range } from "../disk/disk.ts";
import { endOf, overlap } from "../disk/extents.ts";
import { AppError } from "../errors.ts";
import { retry, type RetryPolicy } from "../flow/retry.ts";
import type { LentBytes, LentPiece, ServedDisk } from "../nbd/server/served-disk.ts";
import type { Repository } from "../repository/config.ts";
import { DiskMap, type MapRun } from "../repository/layer-stack.ts";
import type { Manifest, ManifestDisk } from "../repository/manifest.ts";
import type { Cell } from "./chunk-memory.ts";
import type { ChunkOwner, OpenedChunks, WantedChunk } from "./opened-chunks.ts";
import { Readahead, type ChunkSpan } from "./readahead.ts";

export interface GenerationDiskOptions {
  /** Most bytes fetched ahead of one reader. */
  readonly aheadBytes: number;
  /** How long trouble of the store is sat out. */
  readonly retry: RetryPolicy;
  /** Told of each read of a chunk that holds data. */
  readonly onRead?: (chunk: number) => void;
}

/** Takes a part of a chunk: the chunk and the part's bytes, or undefined for zeros; and where the part is on the disk. */
type Use = (piece: { readonly of: Cell; readonly bytes: Buffer } | undefined, part: Range) => void;

/** Bytes fetched ahead of a reader that goes on for the first time. */
const AHEAD_START = MiB;
/** Runs of the map that are in memory at once are at most so many chunks. */
const WINDOW_CHUNKS = 8192;

/**
 * A disk of a generation, read straight from the repository, byte for byte what was backed up: zeros without any
 * request, data from chunks that were checked down to their ids.
 *
 * Trouble of the store is waited for within a bound; damage fails the reads of the chunks it hit, and no others.
 */
export class GenerationDisk implements ServedDisk, ChunkOwner {
  readonly readOnly = true;
  readonly blockSize: BlockSize = { minimum: 1, preferred: 4096, maximum: 32 * MiB };
  readonly description: string;
  readonly key: string;
  readonly #map: DiskMap;
  readonly #chunks: OpenedChunks;
  readonly #policy: RetryPolicy;
  readonly #onRead: ((chunk: number) => void) | undefined;
  readonly #readahead: Readahead;
  readonly #zeros: Buffer;
  readonly #stop = new AbortController();
  readonly #ahead = new Set<Promise<void>>();

  private constructor(
    manifest: Manifest,
    disk: ManifestDisk,
    map: DiskMap,
    chunks: OpenedChunks,
    options: GenerationDiskOptions,
  ) {
    this.description = `disk ${disk.name} of ${manifest.source}, generation ${manifest.generation}`;
    this.key = `${manifest.generation}/${disk.name}`;
    this.#map = map;
    this.#chunks = chunks;
    this.#policy = options.retry;
    this.#onRead = options.onRead;
    this.#zeros = Buffer.alloc(map.chunkSize);
    const most = Math.floor(options.aheadBytes / map.chunkSize);
    this.#readahead = new Readahead(map.chunks, Math.min(most, Math.ceil(AHEAD_START / map.chunkSize)), most);
  }

  /** @param chunks may be shared by disks. @throws as `DiskMap.open`. */
  static async open(
    repository: Repository,
    manifest: Manifest,
    disk: ManifestDisk,
    chunks: OpenedChunks,
    options: GenerationDiskOptions,
    signal: AbortSignal,
  ): Promise<GenerationDisk> {
    const map = await DiskMap.open(repository, disk, signal);
    return new GenerationDisk(manifest, disk, map, chunks, options);
  }

  get size(): number {
    return this.#map.size;
  }

  get chunks(): number {
    return this.#map.chunks;
  }

  lengthOf(chunk: number): number {
    return chunkLength(chunk, this.#map.size, this.#map.chunkSize);
  }

  async read(offset: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
    const range = { offset, length: into.length };
    await this.#forEach(range, signal, (piece, part) => {
      const at = part.offset - offset;
      if (piece === undefined) into.fill(0, at, at + part.length);
      else into.set(piece.bytes, at);
    });
  }

  async lend(offset: number, length: number, signal: AbortSignal): Promise<LentBytes> {
    const pieces: LentPiece[] = [];
    const lent: (() => void)[] = [];
    const release = (): void => {
      for (const giveBack of lent) giveBack();
    };
    const first = Math.floor(offset / this.#map.chunkSize);
    try {
      await this.#forEach({ offset, length }, signal, (piece, part) => {
        const index = Math.floor(part.offset / this.#map.chunkSize) - first;
        if (piece === undefined) {
          pieces[index] = { bytes: this.#zeros.subarray(0, part.length), zero: true };
          return;
        }
        const giveBack = this.#chunks.lend(piece.of);
        if (giveBack !== undefined) lent.push(giveBack);
        const bytes = giveBack === undefined ? Buffer.from(piece.bytes) : piece.bytes;
        pieces[index] = { bytes, zero: false };
      });
    } catch (error) {
      release();
      throw error;
    }
    return { pieces, release };
  }

  async *extents(range: Range, signal: AbortSignal): AsyncGenerator<Extent, void, undefined> {
    const { from, to } = this.#spanOf(range);
    for (let at = from; at < to; at += WINDOW_CHUNKS) {
      for (const run of await this.#runs({ from: at, to: Math.min(at + WINDOW_CHUNKS, to) }, signal)) {
        const part = overlap(this.#rangeOf(run.first, run.count), range);
        if (part !== undefined) yield { ...part, state: run.where === "zero" ? "zero" : "data" };
      }
    }
  }

  /** Brings chunks into memory that somebody will probably read; behind what is read now. Never rejects. */
  async fetchAhead(chunks: readonly number[]): Promise<void> {
    const { signal } = this.#stop;
    const spans: ChunkSpan[] = [];
    for (const chunk of chunks.toSorted((a, b) => a - b)) {
      const last = spans.at(-1);
      if (last?.to === chunk) spans[spans.length - 1] = { from: last.from, to: chunk + 1 };
      else spans.push({ from: chunk, to: chunk + 1 });
    }
    try {
      const runs = (await Promise.all(spans.map((span) => this.#runs(span, signal)))).flat();
      const wanted = runs
        .flatMap(chunksOf)
        .filter(({ chunk }) => this.#chunks.kept(this, chunk) === undefined);
      await Promise.allSettled(this.#chunks.obtain(this, wanted, "ahead", signal));
    } catch {
      // whoever comes to read it hears why
    }
  }

  /** Whether more chunks than this hold data. */
  async hasMoreData(chunks: number, signal: AbortSignal): Promise<boolean> {
    let found = 0;
    for await (const { where, count } of this.#map.runs(0, this.#map.chunks, signal)) {
      if (where !== "zero") found += count;
      if (found > chunks) return true;
    }
    return false;
  }

  /** Ends what is fetched ahead. After the last read. */
  async close(): Promise<void> {
    this.#stop.abort(new AppError("cancelled", "E_SERVE_CLOSED", "The disk is served no longer"));
    await Promise.all(this.#ahead);
  }

  /**
   * Hands over a range, chunk by chunk as they come. When it settles, `use` is called no more.
   *
   * @param use told the part of the chunk that is in the range, without bytes where it is zero; to be copied or borrowed
   *   at once.
   */
  async #forEach(range: Range, signal: AbortSignal, use: Use): Promise<void> {
    signal.throwIfAborted();
    if (range.length === 0) return;
    const missing: number[] = [];
    const span = this.#spanOf(range);
    for (let chunk = span.from; chunk < span.to; chunk++) {
      const kept = this.#chunks.kept(this, chunk);
      if (kept === undefined) missing.push(chunk);
      else this.#use(chunk, kept, range, use);
    }
    const ahead = this.#readahead.note(span);
    try {
      if (missing.length > 0) await this.#fetch(missing, range, ahead, use, signal);
      else if (ahead !== undefined) this.#fetchAhead(ahead);
    } catch (error) {
      signal.throwIfAborted();
      throw this.#failed(range, error);
    }
  }

  async #fetch(
    missing: readonly number[],
    range: Range,
    ahead: ChunkSpan | undefined,
    use: Use,
    signal: AbortSignal,
  ): Promise<void> {
    const wanted: WantedChunk[] = [];
    const lookUp = new Set(missing);
    for (const run of await this.#runs({ from: missing[0]!, to: missing.at(-1)! + 1 }, signal)) {
      if (run.where !== "zero") wanted.push(...chunksOf(run).filter(({ chunk }) => lookUp.has(chunk)));
      else
        for (let chunk = run.first; chunk < run.first + run.count; chunk++)
          if (lookUp.has(chunk)) this.#use(chunk, undefined, range, use);
    }
    const arriving = this.#chunks.obtain(this, wanted, "now", signal);
    if (ahead !== undefined) this.#fetchAhead(ahead); // behind what somebody waits for
    const used = arriving.map(async (kept, index) => this.#use(wanted[index]!.chunk, await kept, range, use));
    const failed = (await Promise.allSettled(used)).find(({ status }) => status === "rejected");
    if (failed?.status === "rejected") throw failed.reason;
  }

  #fetchAhead(span: ChunkSpan): void {
    const chunks = Array.from({ length: span.to - span.from }, (_, index) => span.from + index);
    const fetching = this.fetchAhead(chunks).finally(() => this.#ahead.delete(fetching));
    this.#ahead.add(fetching);
  }

  /** What the map says of a few thousand chunks at most. */
  async #runs({ from, to }: ChunkSpan, signal: AbortSignal): Promise<MapRun[]> {
    return await retry(this.#policy, signal, async () => {
      const runs: MapRun[] = [];
      for await (const run of this.#map.runs(from, to, signal)) runs.push(run);
      return runs;
    });
  }

  #use(chunk: number, kept: Cell | undefined, range: Range, use: Use): void {
    const whole = this.#rangeOf(chunk, 1);
    const part = overlap(whole, range)!;
    const from = part.offset - whole.offset;
    if (kept !== undefined) this.#onRead?.(chunk);
    use(kept && { of: kept, bytes: kept.bytes.subarray(from, from + part.length) }, part);
  }

  #rangeOf(first: number, count: number): Range {
    const { chunkSize, size } = this.#map;
    const offset = first * chunkSize;
    return { offset, length: Math.min(count * chunkSize, size - offset) };
  }

  #spanOf(range: Range): ChunkSpan {
    const { chunkSize } = this.#map;
    return { from: Math.floor(range.offset / chunkSize), to: Math.ceil(endOf(range) / chunkSize) };
  }

  #failed(range: Range, error: unknown): unknown {
    if (!(error instanceof AppError)) return error;
    const message = `Bytes ${range.offset} to ${endOf(range)} of ${this.description} cannot be read: ${error.message}`;
    return new AppError(error.kind, error.code, message, error.context, error);
  }
}

function chunksOf({ first, count, where }: MapRun): WantedChunk[] {
  if (where === "zero") return [];
  const { packRef, slot } = where;
  return Array.from({ length: count }, (_, index) => ({ chunk: first + index, packRef, slot: slot + index }));
}
