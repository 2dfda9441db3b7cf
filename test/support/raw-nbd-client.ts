import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { onTestFinished } from "vitest";
import {
  ClientFlag,
  CommandFlag,
  InfoType,
  Option,
  OptionReplyType,
  REQUEST_MAGIC,
} from "../../src/nbd/constants.ts";
import {
  CHUNK_HEADER_SIZE,
  decodeChunkHeader,
  decodeExtendedChunkHeader,
  decodeSimpleReply,
  encodeExtendedRequest,
  encodeRequest,
  EXTENDED_CHUNK_HEADER_SIZE,
  SIMPLE_REPLY_SIZE,
  type ExtendedChunkHeader,
  type Request,
} from "../../src/nbd/messages.ts";
import {
  decodeGreeting,
  decodeInfo,
  decodeOptionReplyHeader,
  encodeClientFlags,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
  GREETING_SIZE,
  OPTION_REPLY_HEADER_SIZE,
  type Info,
} from "../../src/nbd/options.ts";

export interface RawChunk extends Omit<ExtendedChunkHeader, "offset"> {
  readonly offset?: number;
  readonly payload: Buffer;
}

/** A client for tests that sends what it is told, right or wrong, and shows what comes back. */
export class RawNbdClient {
  readonly socket: Socket;
  #received = Buffer.alloc(0);
  #cookie = 0n;
  #extended = false;

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.on("error", () => undefined);
  }

  static async connect(path: string): Promise<RawNbdClient> {
    const socket = connect({ path, allowHalfOpen: true });
    onTestFinished(() => void socket.destroy());
    await once(socket, "connect");
    return new RawNbdClient(socket);
  }

  send(...parts: readonly Uint8Array[]): void {
    for (const part of parts) this.socket.write(part);
  }

  /** The next bytes from the server. @throws Error when it closes first. */
  async read(size: number): Promise<Buffer> {
    while (this.#received.length < size) {
      const more = this.socket.read() as Buffer | null;
      if (more !== null) this.#received = Buffer.concat([this.#received, more]);
      else if (this.socket.readableEnded || this.socket.destroyed) throw new Error("the server closed");
      else await this.#change();
    }
    const bytes = this.#received.subarray(0, size);
    this.#received = this.#received.subarray(size);
    return bytes;
  }

  /** Resolves when the server has closed the connection; the bytes that came before. */
  async closed(): Promise<Buffer> {
    const bytes: Buffer[] = [this.#received];
    this.socket.on("data", (chunk: Buffer) => bytes.push(chunk));
    while (!this.socket.readableEnded && !this.socket.destroyed) await this.#change();
    return Buffer.concat(bytes);
  }

  /** Something came, or nothing will any more. */
  async #change(): Promise<void> {
    const settled = new AbortController();
    const events = ["readable", "end", "close"].map((event) =>
      once(this.socket, event, { signal: settled.signal }),
    );
    await Promise.race(events);
    settled.abort();
    await Promise.allSettled(events);
  }

  async greet(flags: number = ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES): Promise<number> {
    const handshakeFlags = decodeGreeting(await this.read(GREETING_SIZE));
    this.send(encodeClientFlags(flags));
    return handshakeFlags;
  }

  /** Sends an option and collects its replies up to the final one. */
  async option(
    option: number,
    data: Uint8Array = new Uint8Array(0),
  ): Promise<{ type: number; data: Buffer }[]> {
    this.send(encodeOption(option, data));
    return await this.optionReplies();
  }

  async optionReplies(): Promise<{ type: number; data: Buffer }[]> {
    for (const replies: { type: number; data: Buffer }[] = []; ;) {
      const { type, length } = decodeOptionReplyHeader(await this.read(OPTION_REPLY_HEADER_SIZE));
      replies.push({ type, data: await this.read(length) });
      if (type === OptionReplyType.ACK || type >= OptionReplyType.ERR_UNSUP) return replies;
    }
  }

  /** The whole handshake up to transmission. @returns what GO told. */
  async go(
    exportName: string,
    style: "simple" | "structured" | "extended",
    queries: readonly string[] = [],
  ): Promise<Info[]> {
    await this.greet();
    if (style === "structured") await this.option(Option.STRUCTURED_REPLY);
    if (style === "extended") await this.option(Option.EXTENDED_HEADERS);
    this.#extended = style === "extended";
    if (queries.length > 0) {
      await this.option(Option.SET_META_CONTEXT, encodeMetaContextRequest({ exportName, queries }));
    }
    const infos = [InfoType.BLOCK_SIZE, InfoType.NAME, InfoType.DESCRIPTION];
    const replies = await this.option(Option.GO, encodeInfoRequest({ exportName, infos }));
    return replies.filter(({ type }) => type === OptionReplyType.INFO).map(({ data }) => decodeInfo(data));
  }

  /** Sends a request in the negotiated form; a payload is announced as extended headers want it. */
  request(type: number, request: Partial<Request> = {}, payload?: Uint8Array): bigint {
    const announced = this.#extended && payload !== undefined ? CommandFlag.PAYLOAD_LEN : 0;
    const whole = { type, cookie: ++this.#cookie, offset: 0, length: payload?.length ?? 0, ...request };
    const flags = (request.flags ?? 0) | announced;
    this.send((this.#extended ? encodeExtendedRequest : encodeRequest)({ ...whole, flags }));
    if (payload !== undefined) this.send(payload);
    return whole.cookie;
  }

  async simpleReply(): Promise<{ error: number; cookie: bigint }> {
    return decodeSimpleReply(await this.read(SIMPLE_REPLY_SIZE));
  }

  /** The next chunk of a structured or extended reply. */
  async chunk(): Promise<RawChunk> {
    const header = this.#extended
      ? decodeExtendedChunkHeader(await this.read(EXTENDED_CHUNK_HEADER_SIZE))
      : decodeChunkHeader(await this.read(CHUNK_HEADER_SIZE));
    return { ...header, payload: await this.read(header.length) };
  }

  /** All chunks of the next reply, when replies do not mix. */
  async chunks(): Promise<RawChunk[]> {
    for (const chunks: RawChunk[] = []; ;) {
      const chunk = await this.chunk();
      chunks.push(chunk);
      if ((chunk.flags & 1) !== 0) return chunks;
    }
  }
}

/** A request whose offset no codec of ours would write. */
export function requestAt(rawOffset: bigint, type: number, length: number, extended = false): Buffer {
  const bytes = Buffer.alloc(extended ? 32 : 28);
  bytes.writeUInt32BE(extended ? 0x21e41c71 : REQUEST_MAGIC, 0);
  bytes.writeUInt16BE(type, 6);
  bytes.writeBigUInt64BE(7n, 8);
  bytes.writeBigUInt64BE(rawOffset, 16);
  if (extended) bytes.writeBigUInt64BE(BigInt(length), 24);
  else bytes.writeUInt32BE(length, 24);
  return bytes;
}
