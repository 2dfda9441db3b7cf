import type { BlockSize, DiskTarget, Range } from "../disk/disk.ts";
import { AppError } from "../errors.ts";
import { DEFAULT_RETRY, type RetryPolicy } from "../flow/retry.ts";
import { alignedPieces, isPartial, type Piece } from "./align.ts";
import { allOf } from "./all-of.ts";
import type { NbdConnection, NbdTiming } from "./connection.ts";
import { Command, CommandFlag, ExportFlag } from "./constants.ts";
import { NbdPool } from "./pool.ts";
import { DEFAULT_CONNECTIONS, expectInside } from "./source.ts";
import type { NbdAddress } from "./uri.ts";

export interface NbdTargetOptions {
  /** Most connections, where the server lets several see the same disk. Default 4. */
  readonly connections?: number;
  readonly retry?: RetryPolicy;
  readonly timing?: NbdTiming;
  /** Every write reaches stable storage before it counts as done, where the server has FUA. */
  readonly fua?: boolean;
}

/** Most bytes in one WRITE_ZEROES or TRIM: they carry no payload, so it may exceed the server's maximum. */
const EFFECT_MAX = 1024 * 1024 * 1024;

/** How many zeros are written at once where the server has no WRITE_ZEROES, in bytes. */
const ZEROS_LENGTH = 1024 * 1024;

/** @throws AppError E_NBD_READ_ONLY (usage); else as `openNbdSource`. */
export async function openNbdTarget(
  address: NbdAddress,
  options: NbdTargetOptions,
  signal: AbortSignal,
): Promise<NbdTarget> {
  const pool = await NbdPool.open(
    address,
    {
      contexts: [],
      connections: options.connections ?? DEFAULT_CONNECTIONS,
      retry: options.retry ?? DEFAULT_RETRY,
      ...(options.timing === undefined ? {} : { timing: options.timing }),
    },
    signal,
  );
  await expectWritable(address, pool);
  return new NbdTarget(address, pool, options.fua === true);
}

/** Closes the pool of an export that nobody may write. @throws AppError E_NBD_READ_ONLY (usage). */
export async function expectWritable(address: NbdAddress, pool: NbdPool): Promise<void> {
  if ((pool.export.flags & ExportFlag.READ_ONLY) === 0) return;
  await pool.close();
  throw new AppError(
    "usage",
    "E_NBD_READ_ONLY",
    `NBD export ${address.uri} is read-only; export it writable`,
  );
}

/**
 * An NBD export to be written. Requests that a lost connection left without an answer are made again, which does
 * no harm; what a server acknowledged and then forgot because it was restarted shows at `flush`.
 */
export class NbdTarget implements DiskTarget {
  readonly name: string;
  readonly size: number;
  readonly blockSize: BlockSize;
  readonly zeroed = false;
  readonly #pool: NbdPool;
  readonly #flags: number;
  readonly #fua: number;
  #zeros: Buffer | undefined;
  /** Longest WRITE_ZEROES or TRIM that the server takes; shrinks once it says so. */
  #effectMax = EFFECT_MAX;
  /** The pool's outages when the first write that no flush covers was sent; undefined when there is none. */
  #unflushedSince: number | undefined;
  /** Blocks that are read, changed and written back take turns: two of them may share a block. */
  #patching: Promise<void> = Promise.resolve();

  constructor(address: NbdAddress, pool: NbdPool, fua: boolean) {
    this.name = address.uri;
    this.size = pool.export.size;
    this.blockSize = pool.export.blockSize;
    this.#pool = pool;
    this.#flags = pool.export.flags;
    this.#fua = fua && this.#has(ExportFlag.SEND_FUA) ? CommandFlag.FUA : 0;
  }

  /** A server's error is E_NBD_WRITE (source). */
  async write(offset: number, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    expectInside(this.name, this.size, { offset, length: bytes.length });
    const pieces = alignedPieces({ offset, length: bytes.length }, this.blockSize, this.size);
    await allOf(pieces, signal, (piece, either) => {
      const start = piece.offset + piece.skip - offset;
      const part = bytes.subarray(start, start + piece.take);
      return isPartial(piece) ? this.#patch(piece, part, either) : this.#write(piece.offset, part, either);
    });
  }

  /** By WRITE_ZEROES where the server has it, else by writing zeros. A server's error is E_NBD_ZERO or E_NBD_WRITE. */
  async zero(offset: number, length: number, signal: AbortSignal): Promise<void> {
    expectInside(this.name, this.size, { offset, length });
    const { minimum } = this.blockSize;
    const start = Math.min(offset + length, Math.ceil(offset / minimum) * minimum);
    const end = offset + length === this.size ? this.size : Math.floor((offset + length) / minimum) * minimum;
    if (!this.#has(ExportFlag.SEND_WRITE_ZEROES) || end <= start) {
      await this.#writeZeros({ offset, length }, signal);
      return;
    }
    await this.#writeZeros({ offset, length: start - offset }, signal);
    await this.#effect(Command.WRITE_ZEROES, { offset: start, length: end - start }, signal);
    await this.#writeZeros({ offset: end, length: offset + length - end }, signal);
  }

  /** Tells the server that a range is not needed any more: what it holds then is undefined. No-op without TRIM. */
  async trim(offset: number, length: number, signal: AbortSignal): Promise<void> {
    expectInside(this.name, this.size, { offset, length });
    const { minimum } = this.blockSize;
    const start = Math.ceil(offset / minimum) * minimum;
    const end = Math.floor((offset + length) / minimum) * minimum;
    if (!this.#has(ExportFlag.SEND_TRIM) || end <= start) return;
    await this.#effect(Command.TRIM, { offset: start, length: end - start }, signal);
  }

  /**
   * One request is enough: there are several connections only where NBD_FLAG_CAN_MULTI_CONN makes a flush on one
   * cover all. Writes must have settled before (proto.md, "Ordering of messages and writes").
   *
   * @throws AppError E_NBD_UNFLUSHED (source) when the server was away after it had acknowledged writes that no
   *   flush covered: it may have lost them.
   */
  async flush(signal: AbortSignal): Promise<void> {
    if (!this.#has(ExportFlag.SEND_FLUSH)) return;
    const since = this.#unflushedSince;
    await this.#pool.run(signal, (connection) => connection.command(Command.FLUSH, 0, 0, 0, signal));
    if (since === undefined) return;
    if (since < this.#pool.outages) {
      throw new AppError(
        "source",
        "E_NBD_UNFLUSHED",
        `NBD server of ${this.name} was away and may have lost what was written before; write it again`,
      );
    }
    this.#unflushedSince = undefined;
  }

  close(): Promise<void> {
    return this.#pool.close();
  }

  async #write(offset: number, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#change(signal, (connection) => connection.write(offset, bytes, this.#fua, signal));
  }

  /** Writes a part of a block whose other bytes must stay as they are. */
  async #patch(piece: Piece, part: Uint8Array, signal: AbortSignal): Promise<void> {
    const before = this.#patching;
    let done = (): void => undefined;
    this.#patching = new Promise((resolve) => (done = resolve));
    try {
      await before;
      const block = Buffer.allocUnsafe(piece.length);
      await this.#pool.run(signal, (connection) => connection.read(piece.offset, block, signal));
      block.set(part, piece.skip);
      await this.#write(piece.offset, block, signal);
    } finally {
      done();
    }
  }

  async #writeZeros(range: Range, signal: AbortSignal): Promise<void> {
    const zeros = (this.#zeros ??= Buffer.alloc(ZEROS_LENGTH));
    const end = range.offset + range.length;
    for (let at = range.offset; at < end; at += ZEROS_LENGTH) {
      await this.write(at, zeros.subarray(0, Math.min(ZEROS_LENGTH, end - at)), signal);
    }
  }

  /** WRITE_ZEROES or TRIM of whole blocks, in the longest requests that the server takes. */
  async #effect(command: number, range: Range, signal: AbortSignal): Promise<void> {
    const end = range.offset + range.length;
    for (let at = range.offset; at < end;) {
      const length = Math.min(this.#effectMax, end - at);
      try {
        await this.#change(signal, (connection) =>
          connection.command(command, at, length, this.#fua, signal),
        );
        at += length;
      } catch (error) {
        if (!this.#shrinks(error, length)) throw error;
      }
    }
  }

  /** True when the server found the request too long (proto.md, "Size constraints"), so that shorter ones may do. */
  #shrinks(error: unknown, length: number): boolean {
    const { minimum, maximum } = this.blockSize;
    const shorter = Math.max(minimum, Math.floor(maximum / minimum) * minimum);
    const errno = error instanceof AppError ? error.context["errno"] : undefined;
    if ((errno !== "EOVERFLOW" && errno !== "EINVAL") || length <= shorter) return false;
    this.#effectMax = shorter;
    return true;
  }

  async #change(signal: AbortSignal, work: (connection: NbdConnection) => Promise<void>): Promise<void> {
    let sentAt = 0;
    await this.#pool.run(signal, (connection) => {
      sentAt = this.#pool.outages;
      return work(connection);
    });
    if (this.#fua === 0) this.#unflushedSince ??= sentAt;
  }

  #has(flag: number): boolean {
    return (this.#flags & flag) !== 0;
  }
}
