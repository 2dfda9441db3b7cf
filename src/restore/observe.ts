import { MiB } from "../bytes/size.ts";
import { batches } from "../chunk/batches.ts";
import { fetchBatch } from "../chunk/fetch.ts";
import { chunkRuns, type ChunkRun } from "../chunk/grid.ts";
import { SlabPool } from "../chunk/slabs.ts";
import type { ChunkWorkers } from "../chunk/workers.ts";
import type { DiskSource } from "../disk/disk.ts";
import { drain, mapOrdered } from "../flow/map-ordered.ts";
import type { DiskGeometry } from "../repository/layer.ts";
import { CHUNK_ID_SIZE } from "../repository/pack-directory.ts";

/** Bytes read and hashed as one; at least the largest chunk. */
const BATCH_BYTES = 4 * MiB;

/** Batches under way at once. */
const READS = 4;

const NO_ID = Buffer.alloc(CHUNK_ID_SIZE);

/** What a disk holds in some of its chunks: 33 bytes of memory for each. */
export class ObservedChunks {
  readonly #first: number;
  readonly #looked: Uint8Array;
  readonly #ids: Buffer;

  /** At first nobody has looked at any chunk. */
  constructor(from: number, to: number) {
    this.#first = from;
    this.#looked = new Uint8Array(to - from);
    this.#ids = Buffer.alloc((to - from) * CHUNK_ID_SIZE);
  }

  /** @param id undefined for a chunk of zeros. */
  note(chunk: number, id: Uint8Array | undefined): void {
    const index = chunk - this.#first;
    this.#looked[index] = 1;
    if (id !== undefined) this.#ids.set(id, index * CHUNK_ID_SIZE);
  }

  /** False when the disk's map vouches for the chunk, so that nobody has looked at it. */
  looked(chunk: number): boolean {
    return this.#looked[chunk - this.#first] === 1;
  }

  /** Of a chunk that was looked at. */
  isZero(chunk: number): boolean {
    return this.#idOf(chunk).equals(NO_ID);
  }

  /** True when a chunk that was looked at is the one of this id. */
  holds(chunk: number, id: Buffer): boolean {
    return this.#idOf(chunk).equals(id);
  }

  #idOf(chunk: number): Buffer {
    const at = (chunk - this.#first) * CHUNK_ID_SIZE;
    return this.#ids.subarray(at, at + CHUNK_ID_SIZE);
  }
}

/**
 * Looks at a disk's chunks, front to back, and names them as the repository does. What the disk says of itself is
 * believed: a place that is zero is not read, one that is unchanged not looked at.
 */
export class DiskObserver {
  /** Bytes read. */
  bytesRead = 0;
  /** Bytes at which nobody looked, for they are said to be unchanged. */
  bytesVouched = 0;
  readonly #disk: Pick<DiskSource, "size" | "read">;
  readonly #geometry: DiskGeometry;
  readonly #workers: ChunkWorkers;
  readonly #slabs: SlabPool;
  readonly #run: AbortController;
  readonly #runs: AsyncIterator<ChunkRun>;
  /** The last that came, as far as it was not asked for yet. */
  #held: ChunkRun | undefined;

  /** @param geometry of what is compared: the disk itself may go on behind it. */
  constructor(source: DiskSource, geometry: DiskGeometry, workers: ChunkWorkers, run: AbortController) {
    const { size, chunkSize } = geometry;
    this.#disk = { size, read: (offset, into, signal) => source.read(offset, into, signal) };
    this.#geometry = geometry;
    this.#workers = workers;
    this.#slabs = new SlabPool(BATCH_BYTES, READS);
    this.#run = run;
    const extents = source.extents({ offset: 0, length: size }, run.signal);
    this.#runs = chunkRuns(extents, size, chunkSize)[Symbol.asyncIterator]();
  }

  /**
   * The chunks `from` to `to` - 1; `from` is where the call before ended.
   * @param progress told after each read.
   */
  async observe(from: number, to: number, progress: () => void): Promise<ObservedChunks> {
    const observed = new ObservedChunks(from, to);
    const { chunkSize } = this.#geometry;
    const cut = batches(this.#within(from, to), Math.floor(BATCH_BYTES / chunkSize));
    const done = mapOrdered(cut, READS, this.#run, async (batch, signal) => {
      const fetched = await fetchBatch(batch, this.#disk, chunkSize, this.#slabs, this.#workers, signal);
      if (fetched.slab === undefined) {
        for (let index = 0; index < batch.count; index++) observed.note(batch.first + index, undefined);
        return;
      }
      fetched.slab.release();
      fetched.identities.forEach((identity, index) => {
        observed.note(batch.first + index, identity.zero ? undefined : identity.id);
      });
      for (const { length } of fetched.pieces) this.bytesRead += length;
      progress();
    });
    await drain(done);
    return observed;
  }

  /** The runs of a window; what lies between them is vouched for. */
  async *#within(from: number, to: number): AsyncGenerator<ChunkRun, void> {
    let at = from;
    for (;;) {
      this.#held ??= await this.#next();
      if (this.#held === undefined || this.#held.first >= to) break;
      const { first, count, state } = this.#held;
      const end = Math.min(first + count, to);
      this.#vouch(at, first);
      at = end;
      this.#held = end < first + count ? { first: end, count: first + count - end, state } : undefined;
      yield { first, count: end - first, state };
    }
    this.#vouch(at, to);
  }

  #vouch(from: number, to: number): void {
    const { size, chunkSize } = this.#geometry;
    this.bytesVouched += Math.min(to * chunkSize, size) - Math.min(from * chunkSize, size);
  }

  async #next(): Promise<ChunkRun | undefined> {
    const next = await this.#runs.next();
    return next.done === true ? undefined : next.value;
  }
}
