import type { BlockSize, DiskSource, Extent, Range } from "../disk/disk.ts";
import { AppError } from "../errors.ts";
import { DEFAULT_RETRY, type RetryPolicy } from "../flow/retry.ts";
import { alignedPieces, isPartial, widen, type Piece } from "./align.ts";
import type { NbdTiming } from "./connection.ts";
import { Context } from "./constants.ts";
import { allOf } from "./all-of.ts";
import { NbdPool } from "./pool.ts";
import { protocolError } from "./wire.ts";
import { appendExtent, combineStatus } from "./status.ts";
import type { NbdAddress } from "./uri.ts";

export interface NbdSourceOptions {
  /** Name of a QEMU bitmap; ranges not dirty in it are `unchanged`. */
  readonly bitmap?: string;
  /** Most connections, where the server lets several see the same disk. Default 4. */
  readonly connections?: number;
  readonly retry?: RetryPolicy;
  readonly timing?: NbdTiming;
}

export const DEFAULT_CONNECTIONS = 4;

/** Longest question a block status request can carry without extended headers, in bytes: 4 GiB less a block. */
const STATUS_LENGTH_MAX = 2 ** 32 - 2 ** 16;

/**
 * @throws AppError E_NBD_BITMAP (notFound) that names the bitmaps there are; E_NBD_EXPORT (notFound) that names
 *   the exports; E_NBD_CONNECT, E_NBD_PROTOCOL, E_NBD_REFUSED (source); E_NBD_TLS_REQUIRED, E_NBD_TLS_FILES
 *   (usage); E_NBD_TLS, E_NBD_NO_TLS_OFFER (credentials).
 */
export async function openNbdSource(
  address: NbdAddress,
  options: NbdSourceOptions,
  signal: AbortSignal,
): Promise<NbdSource> {
  const { pool, bitmap } = await openSourcePool(address, options, signal);
  return new NbdSource(address, pool, bitmap);
}

/**
 * What an `NbdSource` is made of: connections that tell what is allocated, and what is dirty when there is a bitmap.
 * @throws as `openNbdSource`.
 */
export async function openSourcePool(
  address: NbdAddress,
  options: NbdSourceOptions,
  signal: AbortSignal,
): Promise<{ readonly pool: NbdPool; readonly bitmap: string | undefined }> {
  const bitmap = options.bitmap === undefined ? undefined : Context.DIRTY_BITMAP + options.bitmap;
  const pool = await NbdPool.open(
    address,
    {
      contexts: bitmap === undefined ? [Context.ALLOCATION] : [Context.ALLOCATION, bitmap],
      connections: options.connections ?? DEFAULT_CONNECTIONS,
      retry: options.retry ?? DEFAULT_RETRY,
      ...(bitmap === undefined ? {} : { required: bitmap }),
      ...(options.timing === undefined ? {} : { timing: options.timing }),
    },
    signal,
  );
  return { pool, bitmap };
}

/** An NBD export to be read. */
export class NbdSource implements DiskSource {
  readonly name: string;
  readonly size: number;
  readonly blockSize: BlockSize;
  readonly #pool: NbdPool;
  readonly #bitmap: string | undefined;

  /** @param bitmap the context's full name, when the pool's connections have it selected. */
  constructor(address: NbdAddress, pool: NbdPool, bitmap: string | undefined) {
    this.name = address.uri;
    this.size = pool.export.size;
    this.blockSize = pool.export.blockSize;
    this.#pool = pool;
    this.#bitmap = bitmap;
  }

  /** A server's error is E_NBD_READ (source), one that stays away E_NBD_GONE (source). */
  async read(offset: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
    expectInside(this.name, this.size, { offset, length: into.length });
    const pieces = alignedPieces({ offset, length: into.length }, this.blockSize, this.size);
    await allOf(pieces, signal, (piece, either) => {
      const start = piece.offset + piece.skip - offset;
      return this.#readPiece(piece, into.subarray(start, start + piece.take), either);
    });
  }

  async #readPiece(piece: Piece, into: Uint8Array, signal: AbortSignal): Promise<void> {
    if (!isPartial(piece)) {
      await this.#pool.run(signal, (connection) => connection.read(piece.offset, into, signal));
      return;
    }
    const block = Buffer.allocUnsafe(piece.length);
    await this.#pool.run(signal, (connection) => connection.read(piece.offset, block, signal));
    into.set(block.subarray(piece.skip, piece.skip + piece.take));
  }

  async *extents(range: Range, signal: AbortSignal): AsyncGenerator<Extent, void, undefined> {
    expectInside(this.name, this.size, range);
    const end = range.offset + range.length;
    let held: Extent | undefined; // may go on in the next step
    for (let at = range.offset; at < end;) {
      const step = await this.#step({ offset: at, length: end - at }, signal);
      if (held !== undefined) step.unshift(held);
      const merged: Extent[] = [];
      for (const { offset, length, state } of step) appendExtent(merged, offset, length, state);
      held = merged.pop()!;
      at = held.offset + held.length;
      yield* merged;
    }
    if (held !== undefined) yield held;
  }

  /** The states from the range's start on, as far as one request tells. At least one extent. */
  async #step(range: Range, signal: AbortSignal): Promise<Extent[]> {
    if (this.#pool.export.contexts.size === 0) return [{ ...range, state: "data" }];
    const whole = widen(range, this.blockSize.minimum, this.size);
    const told = await this.#pool.run(signal, async (connection) => {
      const length = connection.export.extended ? whole.length : Math.min(whole.length, STATUS_LENGTH_MAX);
      return connection.blockStatus(whole.offset, length, signal);
    });
    const extents = combineStatus(whole, told, this.#bitmap)
      .map((extent) => clip(extent, range.offset, range.offset + range.length))
      .filter((extent) => extent.length > 0);
    if (extents.length > 0) return extents;
    throw protocolError(`NBD server of ${this.name} told nothing about the block at ${whole.offset}`);
  }

  close(): Promise<void> {
    return this.#pool.close();
  }
}

function clip(extent: Extent, start: number, end: number): Extent {
  const offset = Math.max(extent.offset, start);
  return { offset, length: Math.min(extent.offset + extent.length, end) - offset, state: extent.state };
}

/** @throws AppError E_NBD_RANGE (bug): the caller's mistake. */
export function expectInside(name: string, size: number, range: Range): void {
  if (range.offset >= 0 && range.length >= 0 && range.offset + range.length <= size) return;
  const { offset, length } = range;
  throw new AppError(
    "bug",
    "E_NBD_RANGE",
    `${length} bytes at ${offset} are not inside ${name} of ${size} bytes`,
  );
}
