import { expect, onTestFinished, test } from "vitest";
import { hasCode } from "../../../src/errors.ts";
import { ChunkType, Errno, ExportFlag } from "../../../src/nbd/constants.ts";
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
import { encodeInfo } from "../../../src/nbd/options.ts";
import { openNbdSource, type NbdSource } from "../../../src/nbd/source.ts";
import { parseNbdUri } from "../../../src/nbd/uri.ts";
import { collect } from "../../support/collect.ts";
import {
  startFakeNbdServer,
  statusOf,
  type FakeOptions,
  type FakeServer,
} from "../../support/fake-nbd-server.ts";

const { signal } = new AbortController();
const QUICK = { attemptsMax: 3, baseMs: 1, waitMaxMs: 5, budgetMs: 5000 };
const DISK = Buffer.from(Array.from({ length: 64 * 1024 }, (_, index) => (index * 7) % 251));
const NOTHING = Buffer.alloc(0);

async function fake(options: FakeOptions): Promise<FakeServer> {
  const server = await startFakeNbdServer({ disk: Buffer.from(DISK), ...options });
  onTestFinished(() => server.stop());
  return server;
}

async function open(server: FakeServer, bitmap?: string): Promise<NbdSource> {
  const options = { retry: QUICK, timing: { handshakeMs: 5000, stallMs: 5000 } };
  const address = parseNbdUri(server.uri);
  const source = await openNbdSource(
    address,
    bitmap === undefined ? options : { ...options, bitmap },
    signal,
  );
  onTestFinished(() => source.close());
  return source;
}

/** The protocol error of an attempt; fails the test for anything else. */
async function protocolErrorOf(attempt: Promise<unknown>): Promise<string> {
  const error = await attempt.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (!hasCode(error, "E_NBD_PROTOCOL")) throw new Error("not refused", { cause: error });
  expect(error.kind).toBe("source");
  return error.message;
}

const bytes = (length: number): Buffer => Buffer.alloc(length);
const data = (offset: number, length: number): Buffer =>
  Buffer.concat([encodeDataPrefix(offset), bytes(length)]);
const header = (cookie: bigint, type: number, length: number): Buffer =>
  encodeChunkHeader({ flags: 1, type, cookie, length });

type Answer = NonNullable<FakeOptions["onRequest"]>;
const READ_LIES: [string, Answer, RegExp][] = [
  ["a wrong magic", () => bytes(20), /magic number/],
  ["a cookie nobody used", () => encodeSimpleReply({ error: 5, cookie: 99n }), /nobody made/],
  ["a chunk for a cookie nobody used", () => header(99n, ChunkType.NONE, 0), /nobody made/],
  ["a simple reply to a read", (_r, _n, to) => to.simple(0), /simple reply/],
  ["a simple error reply to a read", (_r, _n, to) => to.simple(5), /simple reply/],
  ["nothing at all, called done", (_r, _n, to) => to.chunk(ChunkType.NONE, NOTHING), /left out/],
  [
    "an empty reply that is not the last",
    (_r, _n, to) => to.chunk(ChunkType.NONE, NOTHING, false),
    /NONE of 0/,
  ],
  ["a payload where none belongs", (_r, _n, to) => to.chunk(ChunkType.NONE, bytes(4)), /NONE of 4/],
  [
    "less than asked",
    (r, _n, to) => to.chunk(ChunkType.OFFSET_DATA, data(r.offset, r.length - 1)),
    /left out/,
  ],
  [
    "more than asked",
    (r, _n, to) => to.chunk(ChunkType.OFFSET_DATA, data(r.offset, r.length + 1)),
    /when asked/,
  ],
  [
    "data before the range",
    (r, _n, to) => to.chunk(ChunkType.OFFSET_DATA, data(r.offset - 1, 8)),
    /when asked/,
  ],
  ["data past 8 PiB", (_r, _n, to) => to.chunk(ChunkType.OFFSET_DATA, Buffer.alloc(9, 0xff)), /when asked/],
  [
    "data chunk without data",
    (r, _n, to) => to.chunk(ChunkType.OFFSET_DATA, data(r.offset, 0)),
    /OFFSET_DATA of 8/,
  ],
  ["4 GiB announced", (r) => header(r.cookie, ChunkType.OFFSET_DATA, 0xffff_ffff).fill(0), /magic number/],
  [
    "4 GiB of data announced",
    (r) => Buffer.concat([header(r.cookie, ChunkType.OFFSET_DATA, 0xffff_ffff), encodeDataPrefix(r.offset)]),
    /when asked/,
  ],
  [
    "the same bytes twice",
    (r, _n, to) => {
      const chunk = to.chunk(ChunkType.OFFSET_DATA, data(r.offset, 8), false);
      return Buffer.concat([chunk, chunk]);
    },
    /twice/,
  ],
  [
    "a hole over data",
    (r, _n, to) => {
      const hole = encodeHole({ offset: r.offset + 4, length: r.length - 4 });
      const chunk = to.chunk(ChunkType.OFFSET_DATA, data(r.offset, 8), false);
      return Buffer.concat([chunk, to.chunk(ChunkType.OFFSET_HOLE, hole)]);
    },
    /twice/,
  ],
  ["a hole of 0 bytes", (r, _n, to) => to.chunk(ChunkType.OFFSET_HOLE, holeOf(r.offset, 0)), /hole of 0/],
  [
    "a hole past the range",
    (r, _n, to) => to.chunk(ChunkType.OFFSET_HOLE, holeOf(r.offset, 16_001)),
    /when asked/,
  ],
  ["a hole of odd length", (_r, _n, to) => to.chunk(ChunkType.OFFSET_HOLE, bytes(13)), /OFFSET_HOLE of 13/],
  ["a block status", (_r, _n, to) => to.chunk(ChunkType.BLOCK_STATUS, bytes(12)), /BLOCK_STATUS of 12/],
  ["an unknown chunk", (_r, _n, to) => to.chunk(0x63, bytes(4)), /unknown \(0x63\)/],
  ["error 0", (_r, _n, to) => to.chunk(ChunkType.ERROR, bytes(6)), /contradict/],
  ["an error cut short", (_r, _n, to) => to.chunk(ChunkType.ERROR, bytes(5)), /5 bytes/],
  ["a huge error", (r) => header(r.cookie, ChunkType.ERROR, 0x1000_0000), /cannot be/],
  [
    "an error whose text is longer than itself",
    (_r, _n, to) => to.chunk(ChunkType.ERROR, Buffer.from([0, 0, 0, 5, 0, 9, 65])),
    /contradict/,
  ],
  [
    "an error at a place nobody asked about",
    (r, _n, to) => {
      const error = encodeErrorChunk({ error: Errno.EIO, message: "", offset: r.offset + r.length + 1 });
      return to.chunk(ChunkType.ERROR_OFFSET, error);
    },
    /when asked/,
  ],
  [
    "errors without end",
    (_r, _n, to) => {
      const error = to.chunk(ChunkType.ERROR, encodeErrorChunk({ error: Errno.EIO, message: "" }), false);
      return Buffer.concat(Array.from({ length: 2000 }, () => error));
    },
    /without end/,
  ],
  [
    "a reply in dust",
    (r, _n, to) => {
      const dust = (index: number): Buffer =>
        to.chunk(ChunkType.OFFSET_DATA, data(r.offset + 2 * index, 1), false);
      return Buffer.concat(Array.from({ length: 5000 }, (_, index) => dust(index)));
    },
    /too many pieces/,
  ],
];

function holeOf(offset: number, length: number): Buffer {
  return encodeHole({ offset, length });
}

test.each(READ_LIES)(
  "a read answered with %s ends the connection with the reason",
  async (_what, lie, reason) => {
    const server = await fake({ onRequest: (request, ...rest) => lie(request, ...rest) });
    const source = await open(server);
    const attempt = source.read(1000, bytes(16_000), signal);
    expect(await protocolErrorOf(attempt)).toMatch(reason);
  },
);

test("an extended reply about another offset ends the connection", async () => {
  const lie: Answer = ({ cookie, offset }) => {
    const wrong = { flags: 1, type: ChunkType.NONE, cookie, length: 0, offset: offset + 1 };
    return encodeExtendedChunkHeader(wrong);
  };
  const source = await open(await fake({ extended: true, onRequest: lie }));
  expect(await protocolErrorOf(source.read(1000, bytes(10), signal))).toMatch(/another offset/);
});

test("a lie fails everything in flight, and the source starts afresh", async () => {
  const server = await fake({
    onRequest: (_request, number) => (number === 0 ? "silence" : number === 1 ? bytes(20) : undefined),
  });
  const source = await open(server);
  const first = source.read(0, bytes(10), signal);
  const second = source.read(10, bytes(10), signal);
  expect(await protocolErrorOf(first)).toBe(await protocolErrorOf(second));
});

const STATUS_LIES: [string, Answer, RegExp][] = [
  ["an extent of 0 bytes", status([[0, 0]]), /0 bytes/],
  ["no extent", (_r, _n, to) => to.chunk(ChunkType.BLOCK_STATUS, bytes(4)), /does not fit/],
  ["half an extent", (_r, _n, to) => to.chunk(ChunkType.BLOCK_STATUS, bytes(16)), /does not fit/],
  ["extents past the export's end", status([[DISK.length + 512, 0]]), /past the end/],
  [
    "extents past the question",
    status([
      [30_000, 0],
      [10, 0],
    ]),
    /beyond what was asked/,
  ],
  ["a context nobody selected", status([[100, 0]], 99), /not due/],
  ["no status", (_r, _n, to) => to.chunk(ChunkType.NONE, NOTHING), /0 of 1/],
  ["a simple reply", (_r, _n, to) => to.simple(0), /0 of 1/],
  ["data", (r, _n, to) => to.chunk(ChunkType.OFFSET_DATA, data(r.offset, 8)), /OFFSET_DATA/],
  [
    "the extended form unasked",
    (_r, _n, to) => to.chunk(ChunkType.BLOCK_STATUS_EXT, encodeExtendedBlockStatus(statusOf(7, [[100, 0]]))),
    /BLOCK_STATUS_EXT/,
  ],
  ["64 MiB of extents", (r) => header(r.cookie, ChunkType.BLOCK_STATUS, 2 ** 26 + 4), /cannot be/],
  [
    "a context twice",
    (_r, _n, to) => {
      const chunk = to.chunk(ChunkType.BLOCK_STATUS, encodeBlockStatus(statusOf(7, [[100, 0]])), false);
      return Buffer.concat([chunk, chunk]);
    },
    /BLOCK_STATUS of 12/,
  ],
];

function status(extents: [number, number][], id = 7): Answer {
  return (_request, _number, to) =>
    to.chunk(ChunkType.BLOCK_STATUS, encodeBlockStatus(statusOf(id, extents)));
}

test.each(STATUS_LIES)(
  "a block status with %s ends the connection with the reason",
  async (_what, lie, reason) => {
    const contexts = { "base:allocation": (): [number, number][] => [[30_000, 0]] };
    const source = await open(await fake({ contexts, onRequest: lie }));
    const attempt = collect(source.extents({ offset: 0, length: 30_000 }, signal));
    expect(await protocolErrorOf(attempt)).toMatch(reason);
  },
);

test("a block status with one context twice and another once ends the connection", async () => {
  const one = (): [number, number][] => [[30_000, 0]];
  const contexts = { "base:allocation": one, "qemu:dirty-bitmap:b": one };
  const lie: Answer = (_request, _number, to) => {
    const chunk = (id: number, last: boolean): Buffer =>
      to.chunk(ChunkType.BLOCK_STATUS, encodeBlockStatus(statusOf(id, [[100, 0]])), last);
    return Buffer.concat([chunk(7, false), chunk(7, false), chunk(8, true)]);
  };
  const source = await open(await fake({ contexts, onRequest: lie }), "b");
  const attempt = collect(source.extents({ offset: 0, length: 30_000 }, signal));
  expect(await protocolErrorOf(attempt)).toMatch(/not due/);
});

test("an extended block status with a wrong count ends the connection", async () => {
  const contexts = { "base:allocation": (): [number, number][] => [[30_000, 0]] };
  const lie: Answer = (_request, _number, to) => {
    const payload = encodeExtendedBlockStatus(statusOf(7, [[100, 0]]));
    payload.writeUInt32BE(2, 4);
    return to.chunk(ChunkType.BLOCK_STATUS_EXT, payload);
  };
  const source = await open(await fake({ contexts, extended: true, onRequest: lie }));
  const attempt = collect(source.extents({ offset: 0, length: 30_000 }, signal));
  expect(await protocolErrorOf(attempt)).toMatch(/does not fit/);
});

test("a server that owes a reply for too long is left, and the read made again", async () => {
  const server = await fake({
    onRequest: () => (server.connections === 1 ? "silence" : undefined),
  });
  const timing = { handshakeMs: 5000, stallMs: 50 };
  const source = await openNbdSource(parseNbdUri(server.uri), { timing, retry: QUICK }, signal);
  onTestFinished(() => source.close());
  const into = bytes(100);
  await source.read(5, into, signal);
  expect(into).toEqual(DISK.subarray(5, 105));
  expect(server.connections).toBe(2);
});

test("a server that owes nothing may be silent for longer than that", async () => {
  const idle = await fake({});
  const busy = await fake({ onRequest: () => (busy.connections === 1 ? "silence" : undefined) });
  const options = { timing: { handshakeMs: 5000, stallMs: 50 }, retry: QUICK };
  const source = await openNbdSource(parseNbdUri(idle.uri), options, signal);
  onTestFinished(() => source.close());
  await source.read(0, bytes(10), signal);
  const other = await openNbdSource(parseNbdUri(busy.uri), options, signal);
  onTestFinished(() => other.close());
  await other.read(0, bytes(10), signal); // takes longer than a stall
  await source.read(0, bytes(10), signal);
  expect([idle.connections, busy.connections]).toEqual([1, 2]);
});

test("an export that comes back with another size is refused", async () => {
  let size = DISK.length;
  const server = await fake({ sizeNow: () => size });
  const source = await open(server);
  size = 100;
  server.dropAll();
  await expect(source.read(0, bytes(10), signal)).rejects.toMatchObject({
    code: "E_NBD_CHANGED",
    kind: "source",
  });
});

test("unknown infos, export flags and error chunks do no harm", async () => {
  const server = await fake({
    flags: ExportFlag.HAS_FLAGS | 0x8000,
    extraInfo: encodeInfo({ type: "unknown", number: 77, data: bytes(5) }),
    onRequest: (_request, number, reply) => {
      if (number > 0) return undefined;
      return reply.chunk(0x8063, Buffer.concat([encodeErrorChunk({ error: 5, message: "no" }), bytes(3)]));
    },
  });
  const source = await open(server);
  await expect(source.read(0, bytes(10), signal)).rejects.toMatchObject({ code: "E_NBD_READ" });
  await source.read(0, bytes(10), signal);
  expect(server.connections).toBe(1);
});
