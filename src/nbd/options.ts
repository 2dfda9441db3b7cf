import type { BlockSize } from "../disk/disk.ts";
import { InfoType, INIT_PASSWD, OLDSTYLE_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC } from "./constants.ts";
import {
  bufferOf,
  decodeString,
  displayText,
  encodeString,
  expectLength,
  protocolError,
  readExactU64,
  writeU64,
} from "./wire.ts";

/*
 * Messages of the handshake (proto.md, "Newstyle negotiation"): an encoder and a decoder each, big-endian, no
 * I/O. Decoders take exactly the bytes of one message and throw AppError E_NBD_PROTOCOL (source) for what cannot
 * be; encoders throw E_NBD_STRING (usage) for a name that the protocol cannot carry.
 */

/** Server's greeting: 0 u64 "NBDMAGIC", 8 u64 "IHAVEOPT", 16 u16 HandshakeFlag. */
export const GREETING_SIZE = 18;

export function encodeGreeting(flags: number): Buffer {
  const bytes = Buffer.allocUnsafe(GREETING_SIZE);
  bytes.writeBigUInt64BE(INIT_PASSWD, 0);
  bytes.writeBigUInt64BE(OPTION_MAGIC, 8);
  bytes.writeUInt16BE(flags, 16);
  return bytes;
}

/** @returns the handshake flags. */
export function decodeGreeting(bytes: Uint8Array): number {
  expectLength(bytes, GREETING_SIZE, "a greeting");
  const buffer = bufferOf(bytes);
  if (buffer.readBigUInt64BE(0) !== INIT_PASSWD) throw protocolError("The peer is not an NBD server");
  const style = buffer.readBigUInt64BE(8);
  if (style === OPTION_MAGIC) return buffer.readUInt16BE(16);
  if (style === OLDSTYLE_MAGIC) {
    throw protocolError("The NBD server speaks only the oldstyle protocol; let it offer newstyle");
  }
  throw protocolError("The NBD server's greeting is of no known style");
}

/** Client's answer to the greeting: u32 ClientFlag. */
export const CLIENT_FLAGS_SIZE = 4;

export function encodeClientFlags(flags: number): Buffer {
  const bytes = Buffer.allocUnsafe(CLIENT_FLAGS_SIZE);
  bytes.writeUInt32BE(flags, 0);
  return bytes;
}

export function decodeClientFlags(bytes: Uint8Array): number {
  expectLength(bytes, CLIENT_FLAGS_SIZE, "client flags");
  return bufferOf(bytes).readUInt32BE(0);
}

/** Option request: 0 u64 "IHAVEOPT", 8 u32 option, 12 u32 length of the data that follows. */
export interface OptionHeader {
  readonly option: number;
  readonly length: number;
}
export const OPTION_HEADER_SIZE = 16;

/** Header and data together. */
export function encodeOption(option: number, data: Uint8Array): Buffer {
  const bytes = Buffer.allocUnsafe(OPTION_HEADER_SIZE + data.length);
  bytes.writeBigUInt64BE(OPTION_MAGIC, 0);
  bytes.writeUInt32BE(option, 8);
  bytes.writeUInt32BE(data.length, 12);
  bytes.set(data, OPTION_HEADER_SIZE);
  return bytes;
}

export function decodeOptionHeader(bytes: Uint8Array): OptionHeader {
  expectLength(bytes, OPTION_HEADER_SIZE, "an option request");
  const buffer = bufferOf(bytes);
  if (buffer.readBigUInt64BE(0) !== OPTION_MAGIC) {
    throw protocolError("NBD client sent an option request without its magic number");
  }
  return { option: buffer.readUInt32BE(8), length: buffer.readUInt32BE(12) };
}

/** Option reply: 0 u64 magic, 8 u32 option, 12 u32 type, 16 u32 length of the data that follows. */
export interface OptionReplyHeader {
  readonly option: number;
  readonly type: number;
  readonly length: number;
}
export const OPTION_REPLY_HEADER_SIZE = 20;

/** Header and data together. The data of an error is a text for people. */
export function encodeOptionReply(option: number, type: number, data: Uint8Array): Buffer {
  const bytes = Buffer.allocUnsafe(OPTION_REPLY_HEADER_SIZE + data.length);
  bytes.writeBigUInt64BE(OPTION_REPLY_MAGIC, 0);
  bytes.writeUInt32BE(option, 8);
  bytes.writeUInt32BE(type, 12);
  bytes.writeUInt32BE(data.length, 16);
  bytes.set(data, OPTION_REPLY_HEADER_SIZE);
  return bytes;
}

export function decodeOptionReplyHeader(bytes: Uint8Array): OptionReplyHeader {
  expectLength(bytes, OPTION_REPLY_HEADER_SIZE, "an option reply");
  const buffer = bufferOf(bytes);
  if (buffer.readBigUInt64BE(0) !== OPTION_REPLY_MAGIC) {
    throw protocolError("NBD server sent an option reply without its magic number");
  }
  return { option: buffer.readUInt32BE(8), type: buffer.readUInt32BE(12), length: buffer.readUInt32BE(16) };
}

/** Answer to EXPORT_NAME: 0 u64 size, 8 u16 ExportFlag; then 124 zeros unless NO_ZEROES was negotiated. */
export interface ExportFacts {
  /** Bytes. */
  readonly size: number;
  /** ExportFlag bits. */
  readonly flags: number;
}
export const EXPORT_FACTS_SIZE = 10;

export function encodeExportFacts(facts: ExportFacts): Buffer {
  const bytes = Buffer.allocUnsafe(EXPORT_FACTS_SIZE);
  writeU64(bytes, facts.size, 0);
  bytes.writeUInt16BE(facts.flags, 8);
  return bytes;
}

export function decodeExportFacts(bytes: Uint8Array): ExportFacts {
  expectLength(bytes, EXPORT_FACTS_SIZE, "an export's size and flags");
  const buffer = bufferOf(bytes);
  return { size: readExactU64(buffer, 0, "an export"), flags: buffer.readUInt16BE(8) };
}

/** Data of INFO and GO: u32 length of name, name, u16 count, u16 per InfoType asked for. */
export interface InfoRequest {
  readonly exportName: string;
  readonly infos: readonly number[];
}

export function encodeInfoRequest(request: InfoRequest): Buffer {
  const infos = Buffer.allocUnsafe(2 + 2 * request.infos.length);
  infos.writeUInt16BE(request.infos.length, 0);
  request.infos.forEach((info, index) => infos.writeUInt16BE(info, 2 + 2 * index));
  return Buffer.concat([sizedString(request.exportName, "export name"), infos]);
}

export function decodeInfoRequest(bytes: Uint8Array): InfoRequest {
  const fields = new Fields(bytes, "a request for an export");
  const exportName = decodeString(fields.bytes(fields.u32()), "an export name");
  const infos = Array.from({ length: fields.u16() }, () => fields.u16());
  fields.end();
  return { exportName, infos };
}

/** Data of NBD_REP_INFO: u16 InfoType, then what that type says. Types unknown here keep their bytes. */
export type Info =
  | ({ readonly type: typeof InfoType.EXPORT } & ExportFacts)
  | { readonly type: typeof InfoType.NAME; readonly name: string }
  | { readonly type: typeof InfoType.DESCRIPTION; readonly description: string }
  | { readonly type: typeof InfoType.BLOCK_SIZE; readonly blockSize: BlockSize }
  | { readonly type: "unknown"; readonly number: number; readonly data: Uint8Array };

export function encodeInfo(info: Info): Buffer {
  const type = Buffer.allocUnsafe(2);
  type.writeUInt16BE(info.type === "unknown" ? info.number : info.type, 0);
  switch (info.type) {
    case InfoType.EXPORT:
      return Buffer.concat([type, encodeExportFacts(info)]);
    case InfoType.NAME:
      return Buffer.concat([type, encodeString(info.name, "export name")]);
    case InfoType.DESCRIPTION:
      return Buffer.concat([type, encodeString(info.description, "export description")]);
    case InfoType.BLOCK_SIZE: {
      const { minimum, preferred, maximum } = info.blockSize;
      return Buffer.concat([type, u32(minimum), u32(preferred), u32(maximum)]);
    }
    case "unknown":
      return Buffer.concat([type, info.data]);
  }
}

export function decodeInfo(bytes: Uint8Array): Info {
  const fields = new Fields(bytes, "information on an export");
  const type = fields.u16();
  switch (type) {
    case InfoType.EXPORT:
      return { type, ...decodeExportFacts(fields.rest()) };
    case InfoType.NAME:
      return { type, name: decodeString(fields.rest(), "an export name") };
    case InfoType.DESCRIPTION:
      return { type, description: displayText(fields.rest()) };
    case InfoType.BLOCK_SIZE: {
      const blockSize = { minimum: fields.u32(), preferred: fields.u32(), maximum: fields.u32() };
      fields.end();
      return { type, blockSize };
    }
    default:
      return { type: "unknown", number: type, data: fields.rest() };
  }
}

/** Data of NBD_REP_SERVER: u32 length of name, name, then a description for people. */
export interface ExportEntry {
  readonly name: string;
  readonly description: string;
}

export function encodeExportEntry(entry: ExportEntry): Buffer {
  const description = encodeString(entry.description, "export description");
  return Buffer.concat([sizedString(entry.name, "export name"), description]);
}

export function decodeExportEntry(bytes: Uint8Array): ExportEntry {
  const fields = new Fields(bytes, "an entry of the export list");
  const name = decodeString(fields.bytes(fields.u32()), "an export name");
  return { name, description: displayText(fields.rest()) };
}

/** Data of LIST_META_CONTEXT and SET_META_CONTEXT: u32 length, export name, u32 count, then u32 length, query each. */
export interface MetaContextRequest {
  readonly exportName: string;
  readonly queries: readonly string[];
}

export function encodeMetaContextRequest(request: MetaContextRequest): Buffer {
  const queries = request.queries.map((query) => sizedString(query, "metadata context"));
  return Buffer.concat([sizedString(request.exportName, "export name"), u32(queries.length), ...queries]);
}

export function decodeMetaContextRequest(bytes: Uint8Array): MetaContextRequest {
  const fields = new Fields(bytes, "a request for metadata contexts");
  const exportName = decodeString(fields.bytes(fields.u32()), "an export name");
  const queries: string[] = [];
  for (let left = fields.u32(); left > 0; left--) {
    queries.push(decodeString(fields.bytes(fields.u32()), "a metadata context"));
  }
  fields.end();
  return { exportName, queries };
}

/** Data of NBD_REP_META_CONTEXT: u32 id, name. The id means nothing in the answer to LIST_META_CONTEXT. */
export interface MetaContext {
  readonly id: number;
  readonly name: string;
}

export function encodeMetaContext(context: MetaContext): Buffer {
  return Buffer.concat([u32(context.id), encodeString(context.name, "metadata context")]);
}

export function decodeMetaContext(bytes: Uint8Array): MetaContext {
  const fields = new Fields(bytes, "a metadata context");
  return { id: fields.u32(), name: decodeString(fields.rest(), "a metadata context") };
}

function u32(value: number): Buffer {
  const bytes = Buffer.allocUnsafe(4);
  bytes.writeUInt32BE(value, 0);
  return bytes;
}

/** u32 length, then the text. */
function sizedString(text: string, what: string): Buffer {
  const bytes = encodeString(text, what);
  return Buffer.concat([u32(bytes.length), bytes]);
}

/** Takes a message's fields from front to back; past its end is a protocol error. */
class Fields {
  readonly #bytes: Buffer;
  readonly #what: string;
  #at = 0;

  constructor(bytes: Uint8Array, what: string) {
    this.#bytes = bufferOf(bytes);
    this.#what = what;
  }

  bytes(length: number): Buffer {
    if (length > this.#bytes.length - this.#at) throw this.#bad("ends too early");
    this.#at += length;
    return this.#bytes.subarray(this.#at - length, this.#at);
  }

  u16(): number {
    return this.bytes(2).readUInt16BE();
  }

  u32(): number {
    return this.bytes(4).readUInt32BE();
  }

  rest(): Buffer {
    return this.bytes(this.#bytes.length - this.#at);
  }

  end(): void {
    if (this.#at < this.#bytes.length) throw this.#bad("goes on after its end");
  }

  #bad(why: string): Error {
    return protocolError(`NBD peer sent ${this.#what} that ${why}`, { length: this.#bytes.length });
  }
}
