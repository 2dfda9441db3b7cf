import {
  ChunkType,
  EXTENDED_REPLY_MAGIC,
  EXTENDED_REQUEST_MAGIC,
  REQUEST_MAGIC,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
} from "./constants.ts";
import { bufferOf, displayText, expectLength, protocolError, readU64, writeU64 } from "./wire.ts";

/*
 * Messages of the transmission phase: an encoder and a decoder each, big-endian, no I/O. Those of the handshake
 * are in options.ts.
 *
 * Decoders take exactly the bytes of one message and throw AppError E_NBD_PROTOCOL (source) for what cannot be.
 * Offsets and lengths past 2^53 come out inexact but past every bound, so check them against the export's size.
 */

/**
 * Request header, client to server (proto.md, "Request message"):
 *
 *    0 u32 magic    4 u16 flags    6 u16 type    8 u64 cookie   16 u64 offset   24 u32 length
 *
 * The extended one has a u64 length. WRITE's payload follows.
 */
export interface Request {
  readonly flags: number;
  readonly type: number;
  readonly cookie: bigint;
  readonly offset: number;
  readonly length: number;
}
export const REQUEST_SIZE = 28;
export const EXTENDED_REQUEST_SIZE = 32;

/** @param request its length must be below 2^32. */
export function encodeRequest(request: Request): Buffer {
  const bytes = Buffer.allocUnsafe(REQUEST_SIZE);
  writeRequestStart(bytes, REQUEST_MAGIC, request);
  bytes.writeUInt32BE(request.length, 24);
  return bytes;
}

export function encodeExtendedRequest(request: Request): Buffer {
  const bytes = Buffer.allocUnsafe(EXTENDED_REQUEST_SIZE);
  writeRequestStart(bytes, EXTENDED_REQUEST_MAGIC, request);
  writeU64(bytes, request.length, 24);
  return bytes;
}

export function decodeRequest(bytes: Uint8Array): Request {
  const buffer = startOf(bytes, REQUEST_SIZE, REQUEST_MAGIC, "a request");
  return { ...readRequestStart(buffer), length: buffer.readUInt32BE(24) };
}

export function decodeExtendedRequest(bytes: Uint8Array): Request {
  const buffer = startOf(bytes, EXTENDED_REQUEST_SIZE, EXTENDED_REQUEST_MAGIC, "an extended request");
  return { ...readRequestStart(buffer), length: readU64(buffer, 24) };
}

function writeRequestStart(bytes: Buffer, magic: number, request: Request): void {
  bytes.writeUInt32BE(magic, 0);
  bytes.writeUInt16BE(request.flags, 4);
  bytes.writeUInt16BE(request.type, 6);
  bytes.writeBigUInt64BE(request.cookie, 8);
  writeU64(bytes, request.offset, 16);
}

function readRequestStart(bytes: Buffer): Omit<Request, "length"> {
  return {
    flags: bytes.readUInt16BE(4),
    type: bytes.readUInt16BE(6),
    cookie: bytes.readBigUInt64BE(8),
    offset: readU64(bytes, 16),
  };
}

/**
 * Simple reply, server to client (proto.md, "Simple reply message"):
 *
 *    0 u32 magic    4 u32 error    8 u64 cookie
 *
 * The data of a successful READ follows, as long as was asked for.
 */
export interface SimpleReply {
  readonly error: number;
  readonly cookie: bigint;
}
export const SIMPLE_REPLY_SIZE = 16;

export function encodeSimpleReply(reply: SimpleReply): Buffer {
  const bytes = Buffer.allocUnsafe(SIMPLE_REPLY_SIZE);
  bytes.writeUInt32BE(SIMPLE_REPLY_MAGIC, 0);
  bytes.writeUInt32BE(reply.error, 4);
  bytes.writeBigUInt64BE(reply.cookie, 8);
  return bytes;
}

export function decodeSimpleReply(bytes: Uint8Array): SimpleReply {
  const buffer = startOf(bytes, SIMPLE_REPLY_SIZE, SIMPLE_REPLY_MAGIC, "a simple reply");
  return { error: buffer.readUInt32BE(4), cookie: buffer.readBigUInt64BE(8) };
}

/**
 * Header of a structured reply's chunk, server to client (proto.md, "Structured reply chunk message"):
 *
 *    0 u32 magic    4 u16 flags    6 u16 type    8 u64 cookie   16 u32 length of the payload that follows
 */
export interface ChunkHeader {
  readonly flags: number;
  readonly type: number;
  readonly cookie: bigint;
  /** Bytes of payload. */
  readonly length: number;
}
export const CHUNK_HEADER_SIZE = 20;

export function encodeChunkHeader(chunk: ChunkHeader): Buffer {
  const bytes = Buffer.allocUnsafe(CHUNK_HEADER_SIZE);
  writeChunkStart(bytes, STRUCTURED_REPLY_MAGIC, chunk);
  bytes.writeUInt32BE(chunk.length, 16);
  return bytes;
}

export function decodeChunkHeader(bytes: Uint8Array): ChunkHeader {
  const buffer = startOf(bytes, CHUNK_HEADER_SIZE, STRUCTURED_REPLY_MAGIC, "a reply chunk");
  return { ...readChunkStart(buffer), length: buffer.readUInt32BE(16) };
}

/**
 * Header of an extended reply's chunk (branch extension-ext-header, "Extended reply chunk message"):
 *
 *    0 u32 magic    4 u16 flags    6 u16 type    8 u64 cookie   16 u64 offset   24 u64 length
 */
export interface ExtendedChunkHeader extends ChunkHeader {
  /** The request's offset, whatever the payload is about. */
  readonly offset: number;
}
export const EXTENDED_CHUNK_HEADER_SIZE = 32;

export function encodeExtendedChunkHeader(chunk: ExtendedChunkHeader): Buffer {
  const bytes = Buffer.allocUnsafe(EXTENDED_CHUNK_HEADER_SIZE);
  writeChunkStart(bytes, EXTENDED_REPLY_MAGIC, chunk);
  writeU64(bytes, chunk.offset, 16);
  writeU64(bytes, chunk.length, 24);
  return bytes;
}

export function decodeExtendedChunkHeader(bytes: Uint8Array): ExtendedChunkHeader {
  const what = "an extended reply chunk";
  const buffer = startOf(bytes, EXTENDED_CHUNK_HEADER_SIZE, EXTENDED_REPLY_MAGIC, what);
  return { ...readChunkStart(buffer), offset: readU64(buffer, 16), length: readU64(buffer, 24) };
}

function writeChunkStart(bytes: Buffer, magic: number, chunk: ChunkHeader): void {
  bytes.writeUInt32BE(magic, 0);
  bytes.writeUInt16BE(chunk.flags, 4);
  bytes.writeUInt16BE(chunk.type, 6);
  bytes.writeBigUInt64BE(chunk.cookie, 8);
}

function readChunkStart(bytes: Buffer): Omit<ChunkHeader, "length"> {
  return {
    flags: bytes.readUInt16BE(4),
    type: bytes.readUInt16BE(6),
    cookie: bytes.readBigUInt64BE(8),
  };
}

/** Bytes before the data in an OFFSET_DATA chunk's payload: the u64 offset of the data on the export. */
export const DATA_PREFIX_SIZE = 8;

export function encodeDataPrefix(offset: number): Buffer {
  const bytes = Buffer.allocUnsafe(DATA_PREFIX_SIZE);
  writeU64(bytes, offset, 0);
  return bytes;
}

export function decodeDataPrefix(bytes: Uint8Array): number {
  expectLength(bytes, DATA_PREFIX_SIZE, "the offset of a data chunk");
  return readU64(bufferOf(bytes), 0);
}

/** Payload of an OFFSET_HOLE chunk: 0 u64 offset, 8 u32 length, not 0. */
export interface Hole {
  readonly offset: number;
  readonly length: number;
}
export const HOLE_SIZE = 12;

export function encodeHole(hole: Hole): Buffer {
  const bytes = Buffer.allocUnsafe(HOLE_SIZE);
  writeU64(bytes, hole.offset, 0);
  bytes.writeUInt32BE(hole.length, 8);
  return bytes;
}

export function decodeHole(bytes: Uint8Array): Hole {
  expectLength(bytes, HOLE_SIZE, "a hole chunk");
  const buffer = bufferOf(bytes);
  const hole = { offset: readU64(buffer, 0), length: buffer.readUInt32BE(8) };
  if (hole.length === 0) throw protocolError("NBD peer sent a hole of 0 bytes");
  return hole;
}

/**
 * Payload of an error chunk: 0 u32 error, not 0; 4 u16 length of the message; 6 message; then, in ERROR_OFFSET
 * alone, u64 offset.
 */
export interface ErrorChunk {
  readonly error: number;
  /** The server's own words, for people; may be empty. */
  readonly message: string;
  /** Where on the export it failed; in ERROR_OFFSET only. */
  readonly offset?: number;
}
/** The longest payload of an error chunk: a message of 4096 bytes and an offset. */
export const ERROR_CHUNK_MAX = 6 + 4096 + 8;

/** The payload of ERROR_OFFSET when there is an offset, else of ERROR. @param chunk its message is cut at 4096 bytes. */
export function encodeErrorChunk(chunk: ErrorChunk): Buffer {
  const message = Buffer.from(chunk.message, "utf8").subarray(0, 4096);
  const bytes = Buffer.allocUnsafe(6 + message.length + (chunk.offset === undefined ? 0 : 8));
  bytes.writeUInt32BE(chunk.error, 0);
  bytes.writeUInt16BE(message.length, 4);
  message.copy(bytes, 6);
  if (chunk.offset !== undefined) writeU64(bytes, chunk.offset, 6 + message.length);
  return bytes;
}

/** @param type ERROR, ERROR_OFFSET, or an error type nobody knows yet, whose further fields are skipped. */
export function decodeErrorChunk(type: number, bytes: Uint8Array): ErrorChunk {
  const buffer = bufferOf(bytes);
  if (buffer.length < 6) throw protocolError(`NBD peer sent an error chunk of ${buffer.length} bytes`);
  const error = buffer.readUInt32BE(0);
  const end = 6 + buffer.readUInt16BE(4);
  const expected = type === ChunkType.ERROR_OFFSET ? end + 8 : end;
  const known = type === ChunkType.ERROR || type === ChunkType.ERROR_OFFSET;
  if (error === 0 || (known ? buffer.length !== expected : buffer.length < expected)) {
    throw protocolError("NBD peer sent an error chunk whose fields contradict each other", {
      error,
      length: buffer.length,
      expected,
    });
  }
  const message = displayText(buffer.subarray(6, end));
  if (type !== ChunkType.ERROR_OFFSET) return { error, message };
  return { error, message, offset: readU64(buffer, end) };
}

/**
 * Payload of BLOCK_STATUS: 0 u32 context id, then per extent u32 length, u32 flags. Of BLOCK_STATUS_EXT: 0 u32
 * context id, 4 u32 count, then per extent u64 length, u64 flags. Extents follow each other from the request's
 * offset on. Two flat arrays, because one reply may carry 2^20 extents.
 */
export interface BlockStatus {
  readonly contextId: number;
  /** Bytes of each extent; none is 0, and there is at least one. */
  readonly lengths: Float64Array;
  /** Flags of each extent; what they mean is the context's business. */
  readonly flags: Float64Array;
}

/** Bytes of a BLOCK_STATUS payload. */
export function blockStatusSize(extents: number): number {
  return 4 + 8 * extents;
}

/** Bytes of a BLOCK_STATUS_EXT payload. */
export function extendedBlockStatusSize(extents: number): number {
  return 8 + 16 * extents;
}

/** @param status lengths and flags must be below 2^32. */
export function encodeBlockStatus(status: BlockStatus): Buffer {
  const bytes = Buffer.allocUnsafe(blockStatusSize(status.lengths.length));
  bytes.writeUInt32BE(status.contextId, 0);
  status.lengths.forEach((length, index) => {
    bytes.writeUInt32BE(length, 4 + 8 * index);
    bytes.writeUInt32BE(status.flags[index]!, 8 + 8 * index);
  });
  return bytes;
}

export function decodeBlockStatus(bytes: Uint8Array): BlockStatus {
  const buffer = bufferOf(bytes);
  const count = (buffer.length - 4) / 8;
  if (count < 1 || !Number.isInteger(count)) throw badStatus(buffer.length);
  const [lengths, flags] = [new Float64Array(count), new Float64Array(count)];
  for (let index = 0; index < count; index++) {
    lengths[index] = buffer.readUInt32BE(4 + 8 * index);
    flags[index] = buffer.readUInt32BE(8 + 8 * index);
  }
  return checkedStatus({ contextId: buffer.readUInt32BE(0), lengths, flags });
}

export function encodeExtendedBlockStatus(status: BlockStatus): Buffer {
  const bytes = Buffer.allocUnsafe(extendedBlockStatusSize(status.lengths.length));
  bytes.writeUInt32BE(status.contextId, 0);
  bytes.writeUInt32BE(status.lengths.length, 4);
  status.lengths.forEach((length, index) => {
    writeU64(bytes, length, 8 + 16 * index);
    writeU64(bytes, status.flags[index]!, 16 + 16 * index);
  });
  return bytes;
}

export function decodeExtendedBlockStatus(bytes: Uint8Array): BlockStatus {
  const buffer = bufferOf(bytes);
  const count = (buffer.length - 8) / 16;
  if (count < 1 || !Number.isInteger(count) || buffer.readUInt32BE(4) !== count)
    throw badStatus(buffer.length);
  const [lengths, flags] = [new Float64Array(count), new Float64Array(count)];
  for (let index = 0; index < count; index++) {
    lengths[index] = readU64(buffer, 8 + 16 * index);
    flags[index] = readU64(buffer, 16 + 16 * index);
  }
  return checkedStatus({ contextId: buffer.readUInt32BE(0), lengths, flags });
}

function checkedStatus(status: BlockStatus): BlockStatus {
  if (!status.lengths.includes(0)) return status;
  throw protocolError("NBD peer sent a block status with an extent of 0 bytes");
}

function badStatus(length: number): Error {
  return protocolError(`NBD peer sent a block status of ${length} bytes, which does not fit its extents`);
}

/** The message as a Buffer, its length and magic checked. */
function startOf(bytes: Uint8Array, size: number, magic: number, what: string): Buffer {
  expectLength(bytes, size, what);
  const buffer = bufferOf(bytes);
  const found = buffer.readUInt32BE(0);
  if (found === magic) return buffer;
  throw protocolError(`NBD peer sent 0x${found.toString(16)} where the magic number of ${what} should be`);
}
