import { MiB } from "../bytes/size.ts";
import { chunkLength } from "../chunk/grid.ts";
import type { BlockSize, Extent, Range } from "../disk/disk.ts";
import { endOf, overlap } from "../disk/extents.ts";
import { AppError } from "../errors.ts";
import { retry, type RetryPolicy } from "../flow/retry.ts";
import type { ServedDisk } from "../nbd/server/served-disk.ts";
import type { Repository } from "../repository/config.ts";
import { DiskMap, type MapRun } from "../repository/layer-stack.ts";
import type { Manifest, ManifestDisk } from "../repository/manifest.ts";
import type { ChunkOwner, OpenedChunks, WantedChunk } from "./opened-chunks.ts";
import { Readahead, type ChunkSpan } from "./readahead.ts";

export interface GenerationDiskOptions {
  /** Most bytes fetched ahead of one reader. */
  readonly aheadBytes: number;
  /** How long trouble of the store is sat out. */
  readonly retry: RetryPolicy;
}

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
  readonly #readahead: Readahead;
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

  lengthOf(chunk: number): number {
    return chunkLength(chunk, this.#map.size, this.#map.chunkSize);
  }

  async read(offset: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (into.length === 0) return;
    const range = { offset, length: into.length };
    const missing: number[] = [];
    const span = this.#spanOf(range);
    for (let chunk = span.from; chunk < span.to; chunk++) {
      const bytes = this.#chunks.kept(this, chunk);
      if (bytes === undefined) missing.push(chunk);
      else this.#copy(chunk, bytes, range, into);
    }
    const ahead = this.#readahead.note(span);
    try {
      if (missing.length > 0) await this.#fill(missing, range, into, ahead, signal);
      else if (ahead !== undefined) this.#fetchAhead(ahead);
    } catch (error) {
      signal.throwIfAborted();
      throw this.#failed(range, error);
    }
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

  /** Ends what is fetched ahead. After the last read. */
  async close(): Promise<void> {
    this.#stop.abort(new AppError("cancelled", "E_SERVE_CLOSED", "The disk is served no longer"));
    await Promise.all(this.#ahead);
  }

  /** Fills what the missing chunks are in a range. When it settles, nothing writes into `into` any more. */
  async #fill(
    missing: readonly number[],
    range: Range,
    into: Uint8Array,
    ahead: ChunkSpan | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    const wanted: WantedChunk[] = [];
    const lookUp = new Set(missing);
    for (const run of await this.#runs({ from: missing[0]!, to: missing.at(-1)! + 1 }, signal)) {
      if (run.where === "zero") this.#zero(run, lookUp, range, into);
      else wanted.push(...chunksOf(run).filter(({ chunk }) => lookUp.has(chunk)));
    }
    const arriving = this.#chunks.obtain(this, wanted, "now", signal);
    if (ahead !== undefined) this.#fetchAhead(ahead); // behind what somebody waits for
    const copied = arriving.map(async (bytes, index) =>
      this.#copy(wanted[index]!.chunk, await bytes, range, into),
    );
    const failed = (await Promise.allSettled(copied)).find(({ status }) => status === "rejected");
    if (failed?.status === "rejected") throw failed.reason;
  }

  #fetchAhead(span: ChunkSpan): void {
    const fetching = this.#fetchSpan(span)
      .catch(() => undefined) // whoever comes to read it hears why
      .finally(() => this.#ahead.delete(fetching));
    this.#ahead.add(fetching);
  }

  async #fetchSpan(span: ChunkSpan): Promise<void> {
    const { signal } = this.#stop;
    const wanted = (await this.#runs(span, signal))
      .flatMap(chunksOf)
      .filter(({ chunk }) => this.#chunks.kept(this, chunk) === undefined);
    await Promise.allSettled(this.#chunks.obtain(this, wanted, "ahead", signal));
  }

  /** What the map says of a few thousand chunks at most. */
  async #runs({ from, to }: ChunkSpan, signal: AbortSignal): Promise<MapRun[]> {
    return await retry(this.#policy, signal, async () => {
      const runs: MapRun[] = [];
      for await (const run of this.#map.runs(from, to, signal)) runs.push(run);
      return runs;
    });
  }

  #zero(run: MapRun, lookUp: ReadonlySet<number>, range: Range, into: Uint8Array): void {
    for (let chunk = run.first; chunk < run.first + run.count; chunk++) {
      const part = lookUp.has(chunk) ? overlap(this.#rangeOf(chunk, 1), range) : undefined;
      if (part !== undefined) into.fill(0, part.offset - range.offset, endOf(part) - range.offset);
    }
  }

  #copy(chunk: number, bytes: Uint8Array, range: Range, into: Uint8Array): void {
    const whole = this.#rangeOf(chunk, 1);
    const part = overlap(whole, range)!;
    const from = part.offset - whole.offset;
    into.set(bytes.subarray(from, from + part.length), part.offset - range.offset);
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
