import { extname } from "node:path";
import { AppError } from "../errors.ts";
import type { BlobFacts } from "./codec.ts";
import type { ChunkKeys } from "./keys.ts";
import type { Slab } from "./slabs.ts";
import { Thread } from "./thread.ts";
import {
  ID_BYTES,
  type Piece,
  type Results,
  type SealedPiece,
  type TaskName,
  type Tasks,
} from "./worker-messages.ts";

export { slabBytes } from "./slabs.ts";
export type { Piece, SealedPiece } from "./worker-messages.ts";

export interface ChunkWorkersOptions {
  /** Worker threads, >= 1; more than cores only cost memory. */
  readonly threads: number;
  /** Bytes; no piece is longer. */
  readonly chunkSize: number;
  /** Of an encrypted repository. */
  readonly keys?: ChunkKeys | undefined;
}

/** A chunk in a slab, with what `identify` said. */
export interface PieceToSeal extends Piece {
  /** 32 bytes. */
  readonly id: Uint8Array;
}

/** A stored blob in a slab, and what its pack's directory says about it. */
export interface BlobToOpen extends Piece, BlobFacts {
  /** Where its chunk goes in the other slab. */
  readonly into: number;
}

/** What a piece is: nothing but zeros, or bytes with a name. */
export type Identity = { readonly zero: true } | { readonly zero: false; readonly id: Buffer };

/** Next to this file, with its extension: .ts from the sources, .js from the build. */
const ENTRY = new URL(`./worker${extname(import.meta.url)}`, import.meta.url);

const NO_ID = Buffer.alloc(ID_BYTES);

/**
 * The threads that do what costs CPU: zero test, hash, compression, sealing, and the way back.
 *
 * A call is one message to the least busy thread and one back, and takes milliseconds: give it several chunks,
 * about 1 MiB. Nothing stops a call half-way, so there is no signal. Its slabs belong to the call until it
 * settles; the number of slabs is what bounds the calls under way.
 *
 * A thread that dies takes the others with it: every call, pending or later, fails with
 * AppError E_CHUNK_WORKER (bug), the pending ones after their thread has stopped touching slabs.
 */
export class ChunkWorkers {
  readonly #threads: readonly Thread[];
  #refusal: AppError | undefined;

  private constructor({ threads, chunkSize, keys }: ChunkWorkersOptions) {
    const onDeath = (failure: AppError): void => {
      this.#refusal ??= failure;
      for (const thread of this.#threads) void thread.stop(failure);
    };
    this.#threads = Array.from({ length: threads }, () => new Thread(ENTRY, { chunkSize, keys }, onDeath));
  }

  /** Resolves when all threads have loaded. @throws AppError E_CHUNK_WORKER (bug). */
  static async start(options: ChunkWorkersOptions): Promise<ChunkWorkers> {
    if (!(options.threads >= 1)) throw new AppError("bug", "E_CHUNK_WORKER", "Chunk workers need a thread");
    const workers = new ChunkWorkers(options);
    try {
      await Promise.all(workers.#threads.map((thread) => thread.ready));
    } catch (error) {
      await Promise.all(workers.#threads.map((thread) => thread.stopped));
      throw error;
    }
    return workers;
  }

  /**
   * Names the chunks in a slab, or finds them to be all zero.
   *
   * @param pieces one per chunk, anywhere in the slab.
   * @returns one per piece, in order. The ids of one call share 32 bytes a piece of memory.
   */
  async identify(slab: Slab, pieces: readonly Piece[]): Promise<readonly Identity[]> {
    const ids = await this.#call(
      "identify",
      { slab: slab.bytes.buffer, pieces: pieces.map(place) },
      pieces,
      [],
    );
    return pieces.map((_, index) => {
      const id = Buffer.from(ids.buffer, index * ID_BYTES, ID_BYTES);
      return id.equals(NO_ID) ? { zero: true } : { zero: false, id };
    });
  }

  /**
   * Turns chunks into blobs inside their slab, which must have the room that `slabBytes` gives. What else was in
   * the slab is lost, pieces not listed too.
   *
   * @param pieces sorted by offset, not overlapping, within the first `chunks * chunkSize` bytes.
   * @returns where the blobs are: one per piece, in order, not overlapping, sorted by offset.
   */
  async seal(slab: Slab, pieces: readonly PieceToSeal[]): Promise<readonly SealedPiece[]> {
    let end = 0;
    for (const { offset, length } of pieces) {
      if (offset < end)
        throw new AppError("bug", "E_PIECE_ORDER", "Chunks to seal overlap or are not sorted");
      end = offset + length;
    }
    const ids = idsOf(pieces);
    const task = { slab: slab.bytes.buffer, pieces: pieces.map(place), ids };
    return this.#call("seal", task, pieces, [ids.buffer]);
  }

  /**
   * Turns blobs in `from` into chunks in `to`, another piece of shared memory, each checked down to its id.
   *
   * @param blobs their chunks must not overlap in `to`.
   * @throws AppError of the first bad blob, as `openBlob` throws it, with its index in the context as `blob`. `to`
   *   then holds the chunks before it.
   */
  async open(from: Slab, blobs: readonly BlobToOpen[], to: Pick<Slab, "bytes">): Promise<void> {
    const ids = idsOf(blobs);
    const packed = blobs.map(({ offset, length, codec, crc32, rawLength, into }) => {
      return { offset, length, codec, crc32, rawLength, into };
    });
    const task = { from: from.bytes.buffer, blobs: packed, ids, to: to.bytes.buffer };
    await this.#call("open", task, blobs, [ids.buffer]);
  }

  /** Waits for the calls under way, then ends the threads. Later calls fail with E_WORKERS_CLOSED (bug). Safe to call twice. */
  async close(): Promise<void> {
    this.#refusal ??= new AppError("bug", "E_WORKERS_CLOSED", "The chunk workers are closed already");
    await Promise.all(this.#threads.map((thread) => thread.idle()));
    await Promise.all(this.#threads.map((thread) => thread.stop(this.#refusal)));
  }

  async #call<Name extends TaskName>(
    name: Name,
    task: Tasks[Name],
    pieces: readonly Piece[],
    transfer: readonly ArrayBuffer[],
  ): Promise<Results[Name]> {
    if (this.#refusal !== undefined) throw this.#refusal;
    const free = this.#threads.reduce((least, thread) => (thread.load < least.load ? thread : least));
    const bytes = pieces.reduce((sum, { length }) => sum + length, 0);
    return free.call(name, task, bytes, transfer);
  }
}

/** The piece alone: whatever else the caller's object carries would be cloned for the thread. */
function place({ offset, length }: Piece): Piece {
  return { offset, length };
}

/** A view's clone would bring all of the memory it looks at: ids are gathered instead. */
function idsOf(pieces: readonly { readonly id: Uint8Array }[]): Uint8Array<ArrayBuffer> {
  const ids = new Uint8Array(pieces.length * ID_BYTES);
  pieces.forEach(({ id }, index) => ids.set(id, index * ID_BYTES));
  return ids;
}
