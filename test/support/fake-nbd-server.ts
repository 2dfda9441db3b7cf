import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  ChunkType,
  Command,
  HandshakeFlag,
  InfoType,
  Option,
  OptionReplyType,
  ReplyFlag,
} from "../../src/nbd/constants.ts";
import {
  decodeExtendedRequest,
  decodeRequest,
  encodeBlockStatus,
  encodeChunkHeader,
  encodeDataPrefix,
  encodeExtendedBlockStatus,
  encodeExtendedChunkHeader,
  encodeSimpleReply,
  type BlockStatus,
  type Request,
} from "../../src/nbd/messages.ts";
import {
  decodeMetaContextRequest,
  decodeOptionHeader,
  encodeExportFacts,
  encodeGreeting,
  encodeInfo,
  encodeMetaContext,
  encodeOptionReply,
  encodeExportEntry,
} from "../../src/nbd/options.ts";

/** What the fake does in place of the right thing; nothing is the right thing. */
export type Lie = Buffer | "close" | "silence" | undefined;

export interface FakeOptions {
  /** The export's bytes; reads come from them, writes go there. */
  readonly disk?: Buffer;
  /** What the server says the size is, when that is not the disk's length. */
  readonly sizeNow?: () => number;
  /** ExportFlag bits. */
  readonly flags?: number;
  readonly structured?: boolean;
  readonly extended?: boolean;
  /** One more NBD_REP_INFO in the answer to GO. */
  readonly extraInfo?: Buffer;
  readonly blockSize?: { minimum: number; preferred: number; maximum: number };
  /** Contexts on offer, with what block status says of them: [length, flags] from the request's offset on. */
  readonly contexts?: Readonly<Record<string, (request: Request) => [number, number][]>>;
  readonly greeting?: Buffer | "silence";
  readonly onOption?: (option: number, data: Buffer) => Lie;
  readonly onRequest?: (request: Request, number: number, reply: Replies) => Lie;
}

/** Makes replies in the style that was negotiated. */
export interface Replies {
  chunk(type: number, payload: Buffer, done?: boolean): Buffer;
  simple(error: number): Buffer;
}

export interface FakeServer {
  readonly uri: string;
  /** Every request of every connection, in order of arrival. */
  readonly requests: Request[];
  readonly options: number[];
  /** Connections accepted so far. */
  readonly connections: number;
  /** Requests that each connection made, in order of their arrival. */
  readonly served: readonly number[];
  /** How many ended with DISC. */
  readonly farewells: number;
  /** Breaks all connections; new ones are welcome. */
  dropAll(): void;
  stop(): Promise<void>;
}

/** A small right server whose every step a test can replace by a wrong one. */
export async function startFakeNbdServer(options: FakeOptions): Promise<FakeServer> {
  const folder = await mkdtemp(join(tmpdir(), "fake-nbd-"));
  const path = join(folder, "nbd.sock");
  const sockets = new Set<Socket>();
  const seen: Seen = { requests: [], options: [], served: [], farewells: 0 };
  const server = createServer((socket) => {
    const number = seen.served.push(0) - 1;
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket)).on("error", () => undefined);
    void serve(new Session(socket), options, seen, number).catch(() => socket.destroy());
  });
  server.listen(path);
  await once(server, "listening");
  const dropAll = (): void => sockets.forEach((socket) => socket.destroy());
  return {
    uri: `nbd+unix:///?socket=${encodeURIComponent(path)}`,
    requests: seen.requests,
    options: seen.options,
    served: seen.served,
    get connections() {
      return seen.served.length;
    },
    get farewells() {
      return seen.farewells;
    },
    dropAll,
    stop: async () => {
      dropAll();
      server.close();
      await rm(folder, { recursive: true });
    },
  };
}

/** A socket that is read by length. */
class Session {
  readonly socket: Socket;
  #bytes = Buffer.alloc(0);
  #wake = (): void => undefined;

  constructor(socket: Socket) {
    this.socket = socket.pause();
    for (const event of ["readable", "end", "close"]) socket.on(event, () => this.#wake());
  }

  async read(length: number): Promise<Buffer> {
    while (this.#bytes.length < length) {
      const more = this.socket.read() as Buffer | null;
      if (more !== null) this.#bytes = Buffer.concat([this.#bytes, more]);
      else if (this.socket.destroyed || this.socket.readableEnded) throw new Error("the client left");
      else await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    const head = this.#bytes.subarray(0, length);
    this.#bytes = this.#bytes.subarray(length);
    return head;
  }

  /** @returns false when the session ends here. */
  obey(lie: Buffer | "close" | "silence"): boolean {
    if (lie === "close") this.socket.destroy();
    else if (lie !== "silence") this.socket.write(lie);
    return lie !== "close";
  }
}

interface Seen {
  readonly requests: Request[];
  readonly options: number[];
  readonly served: number[];
  farewells: number;
}

interface Agreed {
  structured: boolean;
  extended: boolean;
  contexts: string[];
}

async function serve(session: Session, options: FakeOptions, seen: Seen, number: number): Promise<void> {
  const flags = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES;
  if (options.greeting === "silence") return;
  session.socket.write(options.greeting ?? encodeGreeting(flags));
  await session.read(4);
  const agreed: Agreed = { structured: false, extended: false, contexts: [] };
  for (;;) {
    const { option, length } = decodeOptionHeader(await session.read(16));
    const data = await session.read(length);
    seen.options.push(option);
    const lie = options.onOption?.(option, data);
    if (lie !== undefined) {
      if (!session.obey(lie)) return;
      continue;
    }
    session.socket.write(answer(option, data, options, agreed));
    if (option === Option.ABORT) return;
    if (option === Option.GO || option === Option.EXPORT_NAME) break;
  }
  await transmit(session, options, agreed, seen, number);
}

function answer(option: number, data: Buffer, options: FakeOptions, agreed: Agreed): Buffer {
  const facts = { size: options.sizeNow?.() ?? options.disk?.length ?? 0, flags: options.flags ?? 1 };
  const reply = (type: number, bytes: Buffer = Buffer.alloc(0)): Buffer =>
    encodeOptionReply(option, type, bytes);
  const ack = reply(OptionReplyType.ACK);
  switch (option) {
    case Option.EXTENDED_HEADERS:
      agreed.extended = options.extended ?? false;
      return agreed.extended ? ack : reply(OptionReplyType.ERR_UNSUP);
    case Option.STRUCTURED_REPLY:
      agreed.structured = options.structured ?? true;
      return agreed.structured ? ack : reply(OptionReplyType.ERR_UNSUP);
    case Option.SET_META_CONTEXT:
    case Option.LIST_META_CONTEXT: {
      const { queries } = decodeMetaContextRequest(data);
      const names = Object.keys(options.contexts ?? {});
      agreed.contexts = queries.length === 0 ? names : names.filter((name) => queries.includes(name));
      const found = agreed.contexts.map((name) =>
        reply(4, encodeMetaContext({ id: 7 + names.indexOf(name), name })),
      );
      return Buffer.concat([...found, ack]);
    }
    case Option.LIST:
      return Buffer.concat([
        reply(OptionReplyType.SERVER, encodeExportEntry({ name: "", description: "" })),
        ack,
      ]);
    case Option.GO: {
      const { blockSize } = options;
      const infos = [encodeInfo({ type: InfoType.EXPORT, ...facts })];
      if (blockSize !== undefined) infos.push(encodeInfo({ type: InfoType.BLOCK_SIZE, blockSize }));
      if (options.extraInfo !== undefined) infos.push(options.extraInfo);
      return Buffer.concat([...infos.map((info) => reply(OptionReplyType.INFO, info)), ack]);
    }
    case Option.EXPORT_NAME:
      return encodeExportFacts(facts);
    default:
      return option === Option.ABORT ? ack : reply(OptionReplyType.ERR_UNSUP);
  }
}

async function transmit(
  session: Session,
  options: FakeOptions,
  agreed: Agreed,
  seen: Seen,
  connection: number,
): Promise<void> {
  const disk = options.disk ?? Buffer.alloc(0);
  for (let number = 0; ; number++) {
    const request = agreed.extended
      ? decodeExtendedRequest(await session.read(32))
      : decodeRequest(await session.read(28));
    seen.requests.push(request);
    seen.served[connection]!++;
    if (request.type === Command.WRITE) (await session.read(request.length)).copy(disk, request.offset);
    if (request.type === Command.WRITE_ZEROES) disk.fill(0, request.offset, request.offset + request.length);
    if (request.type === Command.DISC) {
      seen.farewells++;
      session.socket.end();
      return;
    }
    const replies = repliesTo(request, agreed);
    const lie = options.onRequest?.(request, number, replies);
    if (lie !== undefined && !session.obey(lie)) return;
    if (lie === undefined) session.socket.write(rightReply(request, options, agreed, replies));
  }
}

function repliesTo(request: Request, agreed: Agreed): Replies {
  const { cookie, offset } = request;
  return {
    chunk: (type, payload, done = true) => {
      const header = { flags: done ? ReplyFlag.DONE : 0, type, cookie, length: payload.length };
      const bytes = agreed.extended
        ? encodeExtendedChunkHeader({ ...header, offset })
        : encodeChunkHeader(header);
      return Buffer.concat([bytes, payload]);
    },
    simple: (error) => encodeSimpleReply({ error, cookie }),
  };
}

function rightReply(request: Request, options: FakeOptions, agreed: Agreed, replies: Replies): Buffer {
  const chunked = agreed.structured || agreed.extended;
  if (request.type === Command.READ) {
    const data = (options.disk ?? Buffer.alloc(0)).subarray(request.offset, request.offset + request.length);
    if (!chunked) return Buffer.concat([replies.simple(0), data]);
    return replies.chunk(ChunkType.OFFSET_DATA, Buffer.concat([encodeDataPrefix(request.offset), data]));
  }
  if (request.type === Command.BLOCK_STATUS) {
    const names = Object.keys(options.contexts ?? {});
    return Buffer.concat(
      agreed.contexts.map((name, index) => {
        const status = statusOf(7 + names.indexOf(name), options.contexts![name]!(request));
        const last = index === agreed.contexts.length - 1;
        return agreed.extended
          ? replies.chunk(ChunkType.BLOCK_STATUS_EXT, encodeExtendedBlockStatus(status), last)
          : replies.chunk(ChunkType.BLOCK_STATUS, encodeBlockStatus(status), last);
      }),
    );
  }
  return chunked ? replies.chunk(ChunkType.NONE, Buffer.alloc(0)) : replies.simple(0);
}

/** A block status from [length, flags] pairs. */
export function statusOf(contextId: number, extents: readonly [number, number][]): BlockStatus {
  return {
    contextId,
    lengths: Float64Array.from(extents, ([length]) => length),
    flags: Float64Array.from(extents, ([, flags]) => flags),
  };
}
