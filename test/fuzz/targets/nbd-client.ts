import { setImmediate } from "node:timers/promises";
import { KiB, MiB } from "../../../src/bytes/size.ts";
import { AppError } from "../../../src/errors.ts";
import {
  ChunkType,
  Command,
  ExportFlag,
  HandshakeFlag,
  InfoType,
  Option,
  OptionReplyType,
  ReplyFlag,
} from "../../../src/nbd/constants.ts";
import { Handshake, type Negotiated } from "../../../src/nbd/handshake.ts";
import {
  encodeBlockStatus,
  encodeChunkHeader,
  encodeDataPrefix,
  encodeErrorChunk,
  encodeExtendedBlockStatus,
  encodeExtendedChunkHeader,
  encodeHole,
  encodeSimpleReply,
} from "../../../src/nbd/messages.ts";
import {
  encodeExportEntry,
  encodeGreeting,
  encodeInfo,
  encodeMetaContext,
  encodeOptionReply,
} from "../../../src/nbd/options.ts";
import { Pending } from "../../../src/nbd/pending.ts";
import { Receiver } from "../../../src/nbd/receive.ts";
import { ReplyReader } from "../../../src/nbd/replies.ts";
import { combineStatus } from "../../../src/nbd/status.ts";
import { lostError, type Transport } from "../../../src/nbd/transport.ts";
import { parseNbdUri } from "../../../src/nbd/uri.ts";
import { protocolError } from "../../../src/nbd/wire.ts";
import { mutate, type Random } from "../mutate.ts";
import { Broken, type FuzzTarget } from "../target.ts";

const never = new AbortController().signal;
const ALLOCATION = "base:allocation";
const DIRTY = "qemu:dirty-bitmap:b";
const SIZE = 4 * MiB;
const READ = 64 * KiB;
const nothing = Buffer.alloc(0);

type Style = "simple" | "structured" | "extended";

/** What a server may send a client. */
export function nbdClientTargets(): FuzzTarget[] {
  return [handshakeTarget(), ...(["simple", "structured", "extended"] as const).map(repliesTarget)];
}

/** The requests that are under way, by cookie. */
function requests(): Map<bigint, Pending> {
  return new Map([
    [0n, new Pending(Command.READ, 0, READ, Buffer.alloc(READ))],
    [1n, new Pending(Command.READ, READ, 4096, Buffer.alloc(4096))],
    [2n, new Pending(Command.BLOCK_STATUS, 0, MiB)],
    [3n, new Pending(Command.FLUSH, 0, 0)],
    [4n, new Pending(Command.WRITE, 8 * READ, 512)],
    [5n, new Pending(Command.READ, 2 * READ, READ, Buffer.alloc(READ))],
  ]);
}

function repliesTarget(style: Style): FuzzTarget {
  const agreed: Negotiated = {
    size: SIZE,
    flags: ExportFlag.HAS_FLAGS,
    blockSize: { minimum: 1, preferred: 4096, maximum: 32 * MiB },
    description: "",
    structured: style !== "simple",
    extended: style === "extended",
    contexts:
      style === "simple"
        ? new Map()
        : new Map([
            [1, ALLOCATION],
            [2, DIRTY],
          ]),
  };
  return {
    name: `NBD replies, ${style}`,
    seeds: replySeeds(style),
    mutate,
    // one block status of 2^20 extents that is announced: its bytes
    allocatesMax: 32 * MiB,
    decode: (input, random) => readReplies(input, agreed, random),
  };
}

function readReplies(input: Buffer, agreed: Negotiated, random: Random): void {
  const waiting = requests();
  const receiver = new Receiver();
  new ReplyReader(receiver, agreed, {
    pendingOf: (cookie) => {
      const pending = waiting.get(cookie);
      if (pending === undefined) throw protocolError("nobody asked");
      return pending;
    },
    finished: (cookie, pending) => {
      waiting.delete(cookie);
      if (pending.statuses.size > 0) stateOf(pending, agreed);
    },
  });
  for (let at = 0; at < input.length;) {
    const room = receiver.buffer();
    if (room.length === 0) throw new Broken("a piece of no bytes is awaited");
    const size = Math.min(room.length, input.length - at, 1 + random(random(3) === 0 ? 16 : 65_536));
    room.set(input.subarray(at, at + size));
    receiver.filled(size, room);
    at += size;
  }
}

/** What becomes of a status that was believed must be a map of the disk, from the start of what was asked on. */
function stateOf(pending: Pending, agreed: Negotiated): void {
  const told = new Map([...pending.statuses].map(([id, status]) => [agreed.contexts.get(id)!, status]));
  let at = pending.offset;
  for (const { offset, length } of combineStatus(pending, told, DIRTY)) {
    if (offset !== at || length < 1)
      throw new Broken(`an extent of ${length} bytes at ${offset}, not at ${at}`);
    at += length;
  }
  if (at > pending.offset + pending.length) throw new Broken(`states up to ${at}`);
}

function replySeeds(style: Style): Buffer[] {
  if (style === "simple") {
    const simple = (cookie: bigint, error = 0): Buffer => encodeSimpleReply({ error, cookie });
    return [
      Buffer.concat([
        simple(0n),
        Buffer.alloc(READ, 1),
        simple(3n),
        simple(4n),
        simple(1n),
        Buffer.alloc(4096),
      ]),
      Buffer.concat([simple(0n, 5), simple(4n, 28), simple(5n), Buffer.alloc(READ)]),
    ];
  }
  const chunk = (cookie: bigint, type: number, payload: Buffer, done = true): Buffer => {
    const flags = done ? ReplyFlag.DONE : 0;
    const common = { flags, type, cookie, length: payload.length };
    const offset = requests().get(cookie)!.offset;
    const header =
      style === "extended" ? encodeExtendedChunkHeader({ ...common, offset }) : encodeChunkHeader(common);
    return Buffer.concat([header, payload]);
  };
  const data = (offset: number, length: number): Buffer =>
    Buffer.concat([encodeDataPrefix(offset), Buffer.alloc(length, 7)]);
  const status = (contextId: number, ...extents: [number, number][]): Buffer => {
    const lengths = Float64Array.from(extents, ([length]) => length);
    const flags = Float64Array.from(extents, ([, flag]) => flag);
    return (style === "extended" ? encodeExtendedBlockStatus : encodeBlockStatus)({
      contextId,
      lengths,
      flags,
    });
  };
  const statusType = style === "extended" ? ChunkType.BLOCK_STATUS_EXT : ChunkType.BLOCK_STATUS;
  return [
    Buffer.concat([
      chunk(0n, ChunkType.OFFSET_DATA, data(0, READ)),
      chunk(3n, ChunkType.NONE, nothing),
      chunk(1n, ChunkType.OFFSET_HOLE, encodeHole({ offset: READ, length: 4096 })),
      chunk(4n, ChunkType.NONE, nothing),
    ]),
    Buffer.concat([
      chunk(5n, ChunkType.OFFSET_DATA, data(2 * READ, 1000), false),
      chunk(2n, statusType, status(1, [65_536, 0], [131_072, 3], [851_968, 0]), false),
      chunk(5n, ChunkType.OFFSET_HOLE, encodeHole({ offset: 2 * READ + 2000, length: READ - 2000 }), false),
      chunk(2n, statusType, status(2, [512, 1], [MiB, 0])),
      chunk(5n, ChunkType.OFFSET_DATA, data(2 * READ + 1000, 1000)),
    ]),
    Buffer.concat([
      chunk(
        0n,
        ChunkType.ERROR_OFFSET,
        encodeErrorChunk({ error: 5, message: "bad sector", offset: 512 }),
        false,
      ),
      chunk(0n, ChunkType.NONE, nothing),
      chunk(4n, ChunkType.ERROR, encodeErrorChunk({ error: 28, message: "full" })),
    ]),
  ];
}

/** The whole handshake, in memory: everything the server will say is there from the start. */
function handshakeTarget(): FuzzTarget {
  return {
    name: "NBD handshake, client",
    seeds: handshakeSeeds(),
    mutate,
    // the replies to one option may have 8 MiB; the input has less
    allocatesMax: 16 * MiB,
    decode: async (input, random) => {
      const receiver = new Receiver();
      const transport = {
        receiver,
        send: (): void => undefined,
        end: (): Promise<void> => Promise.resolve(),
        startTls: () => Promise.reject(new AppError("credentials", "E_NBD_TLS", "no TLS here")),
      } as unknown as Transport;
      if (input.length > 0) receiver.push(input);
      const talking = talk(new Handshake(transport, parseNbdUri("nbd://fuzz/web")), random(3));
      talking.catch(() => undefined);
      await setImmediate();
      receiver.fail(lostError("the server has gone")); // it has said all there is
      await talking;
    },
  };
}

async function talk(handshake: Handshake, way: number): Promise<void> {
  await handshake.greet(never);
  if (way === 0) {
    await handshake.list();
    return;
  }
  await handshake.negotiateReplies();
  if (way === 1) await handshake.listContexts();
  else await handshake.selectContexts([ALLOCATION, DIRTY]);
  const { size, flags, blockSize } = await handshake.go();
  if (!Number.isSafeInteger(size) || size < 0 || flags > 0xffff)
    throw new Broken(`an export of ${size} bytes`);
  if (blockSize.minimum < 1 || blockSize.maximum < blockSize.minimum)
    throw new Broken("impossible block sizes");
}

function handshakeSeeds(): Buffer[] {
  const reply = encodeOptionReply;
  const ack = (option: number): Buffer => reply(option, OptionReplyType.ACK, nothing);
  const unsupported = (option: number): Buffer => reply(option, OptionReplyType.ERR_UNSUP, Buffer.from("no"));
  const greeting = encodeGreeting(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES);
  const context = (option: number, id: number, name: string): Buffer =>
    reply(option, OptionReplyType.META_CONTEXT, encodeMetaContext({ id, name }));
  const info = (value: Parameters<typeof encodeInfo>[0]): Buffer =>
    reply(Option.GO, OptionReplyType.INFO, encodeInfo(value));
  const go = [
    info({ type: InfoType.EXPORT, size: SIZE, flags: 1 }),
    info({ type: InfoType.BLOCK_SIZE, blockSize: { minimum: 1, preferred: 4096, maximum: 32 * MiB } }),
    info({ type: InfoType.DESCRIPTION, description: "a disk" }),
    ack(Option.GO),
  ];
  const set = Option.SET_META_CONTEXT;
  return [
    Buffer.concat([
      greeting,
      ack(Option.EXTENDED_HEADERS),
      context(set, 1, ALLOCATION),
      context(set, 2, DIRTY),
      ack(set),
      ...go,
    ]),
    Buffer.concat([
      greeting,
      unsupported(Option.EXTENDED_HEADERS),
      ack(Option.STRUCTURED_REPLY),
      context(Option.LIST_META_CONTEXT, 0, ALLOCATION),
      ack(Option.LIST_META_CONTEXT),
      ...go,
    ]),
    Buffer.concat([
      greeting,
      ...["web", "db", ""].map((name) =>
        reply(Option.LIST, OptionReplyType.SERVER, encodeExportEntry({ name, description: "words" })),
      ),
      ack(Option.LIST),
    ]),
    Buffer.concat([
      greeting,
      unsupported(Option.EXTENDED_HEADERS),
      unsupported(Option.STRUCTURED_REPLY),
      reply(Option.GO, OptionReplyType.ERR_UNKNOWN, Buffer.from("no such export")),
      reply(Option.LIST, OptionReplyType.SERVER, encodeExportEntry({ name: "other", description: "" })),
      ack(Option.LIST),
    ]),
    Buffer.concat([encodeGreeting(0), Buffer.from("00000000004000000001", "hex"), Buffer.alloc(124)]),
  ];
}
