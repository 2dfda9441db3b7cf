import {
  ChunkType,
  Command,
  isErrorChunk,
  nameOf,
  ReplyFlag,
  STATUS_EXTENTS_MAX,
  STRUCTURED_REPLY_MAGIC,
} from "./constants.ts";
import type { Negotiated } from "./handshake.ts";
import {
  blockStatusSize,
  CHUNK_HEADER_SIZE,
  DATA_PREFIX_SIZE,
  decodeBlockStatus,
  decodeChunkHeader,
  decodeDataPrefix,
  decodeErrorChunk,
  decodeExtendedBlockStatus,
  decodeExtendedChunkHeader,
  decodeHole,
  decodeSimpleReply,
  ERROR_CHUNK_MAX,
  EXTENDED_CHUNK_HEADER_SIZE,
  extendedBlockStatusSize,
  HOLE_SIZE,
  SIMPLE_REPLY_SIZE,
  type BlockStatus,
  type ChunkHeader,
} from "./messages.ts";
import type { Pending } from "./pending.ts";
import type { Receiver } from "./receive.ts";
import { protocolError } from "./wire.ts";

/** A server that reports more errors than this for one request never comes to an end. */
const ERROR_CHUNKS_MAX = 1024;

/** Whose reply this is, and what to do when it is whole. */
export interface ReplyOwner {
  /** @throws AppError E_NBD_PROTOCOL when nothing was asked under this cookie. */
  pendingOf(cookie: bigint): Pending;
  finished(cookie: bigint, pending: Pending): void;
}

/**
 * Takes the transmission phase's replies apart, in any order of cookies, chunk by chunk. Data of reads goes
 * straight into their buffers. What breaks the protocol is thrown into the receiver's caller, which ends the
 * connection.
 */
export class ReplyReader {
  readonly #receiver: Receiver;
  readonly #agreed: Negotiated;
  readonly #owner: ReplyOwner;
  readonly #header = Buffer.alloc(EXTENDED_CHUNK_HEADER_SIZE);
  readonly #simpleHeader = this.#header.subarray(0, SIMPLE_REPLY_SIZE);
  readonly #chunkHeaderRest = this.#header.subarray(SIMPLE_REPLY_SIZE, CHUNK_HEADER_SIZE);
  readonly #prefix = Buffer.alloc(HOLE_SIZE);
  #filling: Pending | undefined;

  constructor(receiver: Receiver, agreed: Negotiated, owner: ReplyOwner) {
    this.#receiver = receiver;
    this.#agreed = agreed;
    this.#owner = owner;
    this.#nextReply();
  }

  /** True while the socket may write into this read's buffer at any moment. */
  isFilling(pending: Pending): boolean {
    return this.#filling === pending;
  }

  #nextReply(): void {
    this.#filling = undefined;
    if (this.#agreed.extended) {
      this.#receiver.expect(this.#header, () => {
        const chunk = decodeExtendedChunkHeader(this.#header);
        const pending = this.#owner.pendingOf(chunk.cookie);
        if (chunk.offset !== pending.offset) throw protocolError("NBD server answered about another offset");
        this.#chunk(pending, chunk);
      });
    } else {
      this.#receiver.expect(this.#simpleHeader, () => this.#simpleOrChunk());
    }
  }

  #simpleOrChunk(): void {
    if (this.#agreed.structured && this.#header.readUInt32BE(0) === STRUCTURED_REPLY_MAGIC) {
      this.#receiver.expect(this.#chunkHeaderRest, () => {
        const chunk = decodeChunkHeader(this.#header.subarray(0, CHUNK_HEADER_SIZE));
        this.#chunk(this.#owner.pendingOf(chunk.cookie), chunk);
      });
      return;
    }
    const { cookie, error } = decodeSimpleReply(this.#simpleHeader);
    const pending = this.#owner.pendingOf(cookie);
    if (this.#agreed.structured && pending.command === Command.READ) {
      throw protocolError(
        "NBD server answered a read with a simple reply after it agreed to structured ones",
      );
    }
    if (error !== 0) pending.error ??= { error, message: "" };
    if (error !== 0 || pending.command !== Command.READ) this.#finish(cookie, pending);
    else this.#data(pending, pending.offset, pending.length, () => this.#finish(cookie, pending));
  }

  #chunk(pending: Pending, chunk: ChunkHeader): void {
    const next = (): void => {
      if ((chunk.flags & ReplyFlag.DONE) !== 0) this.#finish(chunk.cookie, pending);
      else this.#nextReply();
    };
    switch (chunk.type) {
      case ChunkType.NONE:
        if (chunk.length > 0 || (chunk.flags & ReplyFlag.DONE) === 0) throw this.#bad(pending, chunk);
        next();
        return;
      case ChunkType.OFFSET_DATA:
        this.#offsetData(pending, chunk, next);
        return;
      case ChunkType.OFFSET_HOLE:
        this.#offsetHole(pending, chunk, next);
        return;
      case ChunkType.BLOCK_STATUS:
      case ChunkType.BLOCK_STATUS_EXT:
        this.#blockStatus(pending, chunk, next);
        return;
      default:
        this.#error(pending, chunk, next);
    }
  }

  #offsetData(pending: Pending, chunk: ChunkHeader, next: () => void): void {
    const length = chunk.length - DATA_PREFIX_SIZE;
    if (pending.command !== Command.READ || length < 1) throw this.#bad(pending, chunk);
    const prefix = this.#prefix.subarray(0, DATA_PREFIX_SIZE);
    this.#receiver.expect(prefix, () => this.#data(pending, decodeDataPrefix(prefix), length, next));
  }

  #data(pending: Pending, offset: number, length: number, next: () => void): void {
    pending.expectInside(offset, length);
    pending.coverage.add(offset, offset + length);
    if (pending.abandoned || pending.into === undefined) {
      this.#receiver.skip(length, next);
      return;
    }
    const start = offset - pending.offset;
    this.#filling = pending;
    this.#receiver.expect(pending.into.subarray(start, start + length), next);
  }

  #offsetHole(pending: Pending, chunk: ChunkHeader, next: () => void): void {
    if (pending.command !== Command.READ || chunk.length !== HOLE_SIZE) throw this.#bad(pending, chunk);
    this.#receiver.expect(this.#prefix, () => {
      const { offset, length } = decodeHole(this.#prefix);
      pending.expectInside(offset, length);
      pending.coverage.add(offset, offset + length);
      const start = offset - pending.offset;
      if (!pending.abandoned) pending.into?.fill(0, start, start + length);
      next();
    });
  }

  #blockStatus(pending: Pending, chunk: ChunkHeader, next: () => void): void {
    const { extended, contexts } = this.#agreed;
    const limit = extended
      ? extendedBlockStatusSize(STATUS_EXTENTS_MAX)
      : blockStatusSize(STATUS_EXTENTS_MAX);
    const expectedType = extended ? ChunkType.BLOCK_STATUS_EXT : ChunkType.BLOCK_STATUS;
    const asked = pending.command === Command.BLOCK_STATUS && pending.statuses.size < contexts.size;
    if (!asked || chunk.type !== expectedType || chunk.length > limit || chunk.length === 0) {
      throw this.#bad(pending, chunk);
    }
    const payload = Buffer.allocUnsafe(chunk.length);
    this.#receiver.expect(payload, () => {
      const status = extended ? decodeExtendedBlockStatus(payload) : decodeBlockStatus(payload);
      if (!contexts.has(status.contextId) || pending.statuses.has(status.contextId)) {
        throw protocolError(`NBD server told a block state of context ${status.contextId}, which is not due`);
      }
      expectProgress(pending, status, this.#agreed);
      pending.statuses.set(status.contextId, status);
      next();
    });
  }

  #error(pending: Pending, chunk: ChunkHeader, next: () => void): void {
    if (!isErrorChunk(chunk.type) || chunk.length > ERROR_CHUNK_MAX || chunk.length === 0) {
      throw this.#bad(pending, chunk);
    }
    pending.errorChunks++;
    if (pending.errorChunks > ERROR_CHUNKS_MAX) throw protocolError("NBD server reports errors without end");
    const payload = Buffer.allocUnsafe(chunk.length);
    this.#receiver.expect(payload, () => {
      const error = decodeErrorChunk(chunk.type, payload);
      if (error.offset !== undefined) pending.expectInside(error.offset, 0);
      pending.error ??= error;
      next();
    });
  }

  #finish(cookie: bigint, pending: Pending): void {
    pending.expectComplete(this.#agreed.contexts.size);
    this.#owner.finished(cookie, pending);
    this.#nextReply();
  }

  #bad(pending: Pending, chunk: ChunkHeader): Error {
    const type = nameOf(ChunkType, chunk.type);
    const command = nameOf(Command, pending.command);
    return protocolError(
      `NBD server answered ${command} with ${type} of ${chunk.length} bytes, which cannot be`,
    );
  }
}

/**
 * Extents must start within what was asked for, and none may reach past the export (proto.md,
 * NBD_REPLY_TYPE_BLOCK_STATUS); servers that think in sectors round the last one up.
 */
function expectProgress(pending: Pending, status: BlockStatus, agreed: Negotiated): void {
  let total = 0;
  for (const length of status.lengths) {
    if (total >= pending.length)
      throw protocolError("NBD server told block states beyond what was asked for");
    total += length;
  }
  const unit = Math.max(agreed.blockSize.minimum, 512);
  if (pending.offset + total > Math.ceil(agreed.size / unit) * unit) {
    throw protocolError(`NBD server told block states past the end of the export at ${agreed.size}`);
  }
}
