import { expect, onTestFinished, test } from "vitest";
import {
  ChunkType,
  Command,
  CommandFlag,
  Errno,
  ExportFlag,
  Option,
  OptionReplyType,
} from "../../../src/nbd/constants.ts";
import { describeExport, listExports } from "../../../src/nbd/exports.ts";
import { encodeDataPrefix, encodeErrorChunk, encodeHole } from "../../../src/nbd/messages.ts";
import { encodeOptionReply } from "../../../src/nbd/options.ts";
import { openNbdSource, type NbdSource, type NbdSourceOptions } from "../../../src/nbd/source.ts";
import { openNbdTarget, type NbdTarget, type NbdTargetOptions } from "../../../src/nbd/target.ts";
import { parseNbdUri } from "../../../src/nbd/uri.ts";
import { collect } from "../../support/collect.ts";
import { startFakeNbdServer, type FakeOptions, type FakeServer } from "../../support/fake-nbd-server.ts";

const { signal } = new AbortController();
const QUICK = { attemptsMax: 3, baseMs: 1, waitMaxMs: 5, budgetMs: 5000 };
const WRITABLE = ExportFlag.HAS_FLAGS | ExportFlag.SEND_FLUSH | ExportFlag.SEND_FUA;
const NOTHING = Buffer.alloc(0);

function disk(): Buffer {
  return Buffer.from(Array.from({ length: 256 * 1024 }, (_, index) => (index * 7 + (index >> 9)) & 0xff));
}

async function fake(options: FakeOptions): Promise<FakeServer> {
  const server = await startFakeNbdServer(options);
  onTestFinished(() => server.stop());
  return server;
}

async function source(server: FakeServer, options: NbdSourceOptions = {}): Promise<NbdSource> {
  const opened = await openNbdSource(parseNbdUri(server.uri), { retry: QUICK, ...options }, signal);
  onTestFinished(() => opened.close());
  return opened;
}

async function target(server: FakeServer, options: NbdTargetOptions = {}): Promise<NbdTarget> {
  const opened = await openNbdTarget(parseNbdUri(server.uri), { retry: QUICK, ...options }, signal);
  onTestFinished(() => opened.close());
  return opened;
}

async function readAt(from: NbdSource, offset: number, length: number): Promise<Buffer> {
  const into = Buffer.alloc(length, 0xee);
  await from.read(offset, into, signal);
  return into;
}

/** Reads until so many connections have had their part of it. */
async function useConnections(from: NbdSource, server: FakeServer, count: number): Promise<void> {
  const used = (): number => server.served.filter((requests) => requests > 0).length;
  await expect
    .poll(async () => {
      await Promise.all(Array.from({ length: 8 }, () => readAt(from, 0, 10)));
      return used();
    })
    .toBe(count);
}

test.each([
  ["simple replies", { structured: false }],
  ["structured replies", { structured: true }],
  ["extended headers", { extended: true }],
])("reads with %s", async (_what, style) => {
  const bytes = disk();
  const server = await fake({ disk: bytes, ...style });
  const from = await source(server);
  expect(await readAt(from, 1, 100_000)).toEqual(bytes.subarray(1, 100_001));
  expect(await readAt(from, 0, 0)).toEqual(NOTHING);
});

test("data, holes and out-of-order pieces make one read", async () => {
  const bytes = disk();
  const expected = Buffer.from(bytes.subarray(0, 100_000)).fill(0, 30_000, 60_000);
  const server = await fake({
    disk: bytes,
    onRequest: (request, _number, reply) => {
      if (request.type !== Command.READ) return undefined;
      const data = (start: number, end: number): Buffer =>
        Buffer.concat([encodeDataPrefix(start), bytes.subarray(start, end)]);
      return Buffer.concat([
        reply.chunk(ChunkType.OFFSET_DATA, data(60_000, 100_000), false),
        reply.chunk(ChunkType.OFFSET_HOLE, encodeHole({ offset: 30_000, length: 30_000 }), false),
        reply.chunk(ChunkType.OFFSET_DATA, data(0, 30_000), false),
        reply.chunk(ChunkType.NONE, NOTHING),
      ]);
    },
  });
  expect(await readAt(await source(server), 0, 100_000)).toEqual(expected);
});

test("replies in any order find their reads", async () => {
  const bytes = disk();
  const held: Buffer[] = [];
  const server = await fake({
    disk: bytes,
    onRequest: (request, _number, reply) => {
      if (request.type !== Command.READ) return undefined;
      const { offset, length } = request;
      const data = Buffer.concat([encodeDataPrefix(offset), bytes.subarray(offset, offset + length)]);
      held.unshift(reply.chunk(ChunkType.OFFSET_DATA, data));
      return held.length === 8 ? Buffer.concat(held) : "silence";
    },
  });
  const from = await source(server);
  const reads = await Promise.all(Array.from({ length: 8 }, (_, index) => readAt(from, index * 1000, 1000)));
  expect(Buffer.concat(reads)).toEqual(bytes.subarray(0, 8000));
});

test("never more than 16 requests wait on one connection", async () => {
  const server = await fake({ disk: disk(), onRequest: () => "silence" });
  const from = await source(server, { retry: { ...QUICK, attemptsMax: 1 } });
  const abort = new AbortController();
  const reads = Array.from({ length: 50 }, () => from.read(0, Buffer.alloc(10), abort.signal));
  await expect.poll(() => server.requests.length).toBe(16);
  // Whatever had been sent beyond would have come by the time a new connection's request has.
  const other = await source(server);
  void other.read(0, Buffer.alloc(20), signal).catch(() => undefined);
  await expect.poll(() => server.requests.at(-1)?.length).toBe(20);
  expect(server.requests).toHaveLength(17);
  abort.abort(new Error("enough"));
  const results = await Promise.allSettled(reads);
  expect(new Set(results.map((each) => (each.status === "rejected" ? String(each.reason) : "")))).toEqual(
    new Set(["Error: enough"]),
  );
});

test("an abandoned read's late reply goes nowhere, and the connection goes on", async () => {
  const bytes = disk();
  let late: Buffer | undefined;
  const server = await fake({
    disk: bytes,
    onRequest: (request, number, reply) => {
      const { offset, length } = request;
      if (request.type !== Command.READ) return undefined;
      const data = Buffer.concat([encodeDataPrefix(offset), bytes.subarray(offset, offset + length)]);
      const right = reply.chunk(ChunkType.OFFSET_DATA, data);
      if (number > 0) return Buffer.concat([late ?? NOTHING, right]);
      late = right;
      return "silence";
    },
  });
  const from = await source(server);
  const abort = new AbortController();
  const into = Buffer.alloc(50_000, 0xee);
  const read = from.read(0, into, abort.signal);
  await expect.poll(() => server.requests.length).toBe(1);
  abort.abort(new Error("enough"));
  await expect(read).rejects.toThrow("enough");
  expect(await readAt(from, 5, 1000)).toEqual(bytes.subarray(5, 1005));
  expect(into).toEqual(Buffer.alloc(50_000, 0xee));
  expect(server.connections).toBe(1);
});

test("a read abandoned in the middle of its data gives the buffer back untouched from then on", async () => {
  const bytes = disk();
  const server = await fake({
    disk: bytes,
    onRequest: (request, _number, reply) => {
      if (request.type !== Command.READ || request.length < 200_000) return undefined;
      const data = Buffer.concat([encodeDataPrefix(0), bytes.subarray(0, 200_000)]);
      return reply.chunk(ChunkType.OFFSET_DATA, data).subarray(0, 100_000);
    },
  });
  const from = await source(server);
  const abort = new AbortController();
  const into = Buffer.alloc(200_000);
  const read = from.read(0, into, abort.signal);
  await expect.poll(() => into.subarray(0, 90_000).equals(bytes.subarray(0, 90_000))).toBe(true);
  abort.abort(new Error("enough"));
  await expect(read).rejects.toThrow("enough");
  into.fill(0xee);
  expect(await readAt(from, 5, 1000)).toEqual(bytes.subarray(5, 1005));
  expect(into).toEqual(Buffer.alloc(200_000, 0xee));
  expect(server.connections).toBe(2);
});

test("an aborted signal stops a call before it begins", async () => {
  const server = await fake({ disk: disk() });
  const from = await source(server);
  await expect(from.read(0, Buffer.alloc(10), AbortSignal.abort(new Error("no")))).rejects.toThrow("no");
  expect(server.requests).toEqual([]);
  const opening = openNbdSource(parseNbdUri(server.uri), {}, AbortSignal.abort(new Error("no")));
  await expect(opening).rejects.toThrow("no");
});

test("opening ends soon after an abort", async () => {
  const server = await fake({ greeting: "silence" });
  const abort = new AbortController();
  const opening = openNbdSource(parseNbdUri(server.uri), {}, abort.signal);
  await expect.poll(() => server.connections).toBe(1);
  abort.abort(new Error("enough"));
  await expect(opening).rejects.toThrow("enough");
});

test("a read error fails that read by errno, place and the server's words; the connection goes on", async () => {
  const server = await fake({
    disk: disk(),
    onRequest: (request, number, reply) => {
      if (number > 0) return undefined;
      const error = encodeErrorChunk({
        error: Errno.EIO,
        message: "bad block",
        offset: request.offset + 512,
      });
      return reply.chunk(ChunkType.ERROR_OFFSET, error);
    },
  });
  const from = await source(server);
  await expect(from.read(4096, Buffer.alloc(1024), signal)).rejects.toMatchObject({
    kind: "source",
    code: "E_NBD_READ",
    message: `Cannot read 1024 bytes at 4096 of ${server.uri}: EIO at 4608 (bad block)`,
    context: { offset: 4096, length: 1024, errno: "EIO", errorOffset: 4608 },
  });
  await readAt(from, 4096, 1024);
  expect(server.connections).toBe(1);
});

test("reads that a lost connection left without an answer are made again", async () => {
  const bytes = disk();
  const server = await fake({
    disk: bytes,
    onRequest: (_request, number) => (server.connections === 1 && number === 5 ? "close" : undefined),
  });
  const from = await source(server);
  const reads = await Promise.all(Array.from({ length: 40 }, (_, index) => readAt(from, index * 1000, 1000)));
  expect(Buffer.concat(reads)).toEqual(bytes.subarray(0, 40_000));
  expect(server.connections).toBe(2);
});

test("a server that is shutting down is left with a farewell, and its reads made elsewhere", async () => {
  const bytes = disk();
  const server = await fake({
    disk: bytes,
    onRequest: (request, _number, reply) => {
      if (server.connections > 1 || request.type !== Command.READ) return undefined;
      return reply.chunk(ChunkType.ERROR, encodeErrorChunk({ error: Errno.ESHUTDOWN, message: "" }));
    },
  });
  const from = await source(server);
  expect(await readAt(from, 0, 1000)).toEqual(bytes.subarray(0, 1000));
  expect([server.connections, server.farewells]).toEqual([2, 1]);
});

test("a server that breaks every connection is given up after the policy's attempts", async () => {
  const server = await fake({ disk: disk(), onRequest: () => "close" });
  const from = await source(server);
  await expect(from.read(0, Buffer.alloc(10), signal)).rejects.toMatchObject({
    kind: "source",
    code: "E_NBD_GONE",
  });
  expect(server.connections).toBe(3);
});

test("closing says good-bye on every connection", async () => {
  const flags = ExportFlag.HAS_FLAGS | ExportFlag.CAN_MULTI_CONN;
  const server = await fake({ disk: disk(), flags });
  const from = await source(server, { connections: 3 });
  await useConnections(from, server, 3);
  await from.close();
  await from.close();
  expect(server.farewells).toBe(3);
  await expect(from.read(0, Buffer.alloc(1), signal)).rejects.toMatchObject({ code: "E_NBD_CLOSED" });
});

test("one of several connections that is lost is replaced, while the others go on", async () => {
  const bytes = disk();
  let broken = false;
  const server = await fake({
    disk: bytes,
    flags: ExportFlag.HAS_FLAGS | ExportFlag.CAN_MULTI_CONN,
    onRequest: () => {
      if (broken || server.served.filter((requests) => requests > 0).length < 3) return undefined;
      broken = true;
      return "close";
    },
  });
  const from = await source(server, { connections: 3 });
  await useConnections(from, server, 4);
  expect(server.connections).toBe(4);
  await from.close();
  expect(server.farewells).toBe(3);
});

test("a server without CAN_MULTI_CONN gets one connection", async () => {
  const server = await fake({ disk: disk() });
  const from = await source(server, { connections: 4 });
  await Promise.all(Array.from({ length: 40 }, (_, index) => readAt(from, index, 1)));
  expect(server.connections).toBe(1);
});

test("a server that lets fewer clients in than it could is used with those it lets in", async () => {
  const bytes = disk();
  const server = await fake({
    disk: bytes,
    flags: ExportFlag.HAS_FLAGS | ExportFlag.CAN_MULTI_CONN,
    onOption: () => (server.connections > 2 ? "silence" : undefined),
  });
  const from = await source(server, { connections: 4 });
  await expect.poll(() => server.connections).toBe(4);
  const reads = await Promise.all(Array.from({ length: 100 }, (_, index) => readAt(from, index * 100, 100)));
  expect(Buffer.concat(reads)).toEqual(bytes.subarray(0, 10_000));
});

test("without GO the export is entered by its name", async () => {
  const bytes = disk();
  const server = await fake({
    disk: bytes,
    onOption: (option) =>
      option === Option.GO ? encodeOptionReply(option, OptionReplyType.ERR_UNSUP, NOTHING) : undefined,
  });
  const from = await source(server);
  expect(await readAt(from, 7, 1000)).toEqual(bytes.subarray(7, 1007));
  expect(server.options).toContain(Option.EXPORT_NAME);
});

test.each([
  [OptionReplyType.ERR_POLICY, "E_NBD_REFUSED", "ERR_POLICY (go away)"],
  [OptionReplyType.ERR_TLS_REQD, "E_NBD_TLS_REQUIRED", "write nbds in place of nbd"],
  [OptionReplyType.ERR_UNKNOWN, "E_NBD_EXPORT", 'has no export "" but ""'],
  [OptionReplyType.ERR_SHUTDOWN, "E_NBD_CONNECT", "is shutting down"],
])("refusal 0x%x of the export is %s", async (type, code, reason) => {
  const server = await fake({
    onOption: (option) =>
      option === Option.GO ? encodeOptionReply(option, type, Buffer.from("go away")) : undefined,
  });
  const opening = openNbdSource(parseNbdUri(server.uri), {}, signal);
  await expect(opening).rejects.toMatchObject({ code });
  await expect(opening).rejects.toThrow(reason);
});

test("a server that refuses to list says so", async () => {
  const server = await fake({
    onOption: (option) =>
      option === Option.LIST ? encodeOptionReply(option, OptionReplyType.ERR_POLICY, NOTHING) : undefined,
  });
  await expect(listExports(parseNbdUri(server.uri), signal)).rejects.toMatchObject({ code: "E_NBD_REFUSED" });
});

test("nothing goes out unencrypted to a server that does not offer TLS", async () => {
  const server = await fake({ disk: disk() });
  const uri = server.uri.replace("nbd+unix", "nbds+unix") + "&tls-hostname=h";
  const opening = openNbdSource(parseNbdUri(uri), {}, signal);
  await expect(opening).rejects.toMatchObject({ kind: "credentials", code: "E_NBD_NO_TLS_OFFER" });
  expect(server.options.filter((option) => option !== Option.ABORT)).toEqual([Option.STARTTLS]);
});

test("bytes slipped in behind the consent to TLS are not taken for the server's", async () => {
  const server = await fake({
    onOption: (option) => {
      const consent = encodeOptionReply(option, OptionReplyType.ACK, NOTHING);
      return Buffer.concat([
        consent,
        encodeOptionReply(Option.EXTENDED_HEADERS, OptionReplyType.ACK, NOTHING),
      ]);
    },
  });
  const uri = server.uri.replace("nbd+unix", "nbds+unix") + "&tls-hostname=h";
  await expect(openNbdSource(parseNbdUri(uri), {}, signal)).rejects.toThrow(
    "unencrypted bytes after STARTTLS",
  );
});

const BITMAP = "qemu:dirty-bitmap:b";

test.each([
  ["32-bit", false],
  ["64-bit", true],
])("extents of a 1 PiB export with %s lengths", async (_what, extended) => {
  const size = 2 ** 50;
  const server = await fake({
    sizeNow: () => size,
    extended,
    contexts: {
      "base:allocation": ({ offset, length }) => [[Math.min(length, size - offset), 3]],
      [BITMAP]: ({ offset, length }) => (offset === 0 ? [[65_536, 1]] : [[length, 0]]),
    },
  });
  const from = await source(server, { bitmap: "b" });
  const end = 2 ** 34;
  expect(await collect(from.extents({ offset: 0, length: end }, signal))).toEqual([
    { offset: 0, length: 65_536, state: "zero" },
    { offset: 65_536, length: end - 65_536, state: "unchanged" },
  ]);
  const questions = server.requests.filter(({ type }) => type === Command.BLOCK_STATUS);
  expect(questions).toHaveLength(extended ? 2 : 6);
  expect(Math.max(...questions.map(({ length }) => length))).toBe(extended ? end : 2 ** 32 - 2 ** 16);
});

test("a server without contexts is all data; one without the bitmap names those it has", async () => {
  const plain = await source(await fake({ disk: disk(), structured: false }));
  expect(await collect(plain.extents({ offset: 5, length: 100 }, signal))).toEqual([
    { offset: 5, length: 100, state: "data" },
  ]);
  expect(await collect(plain.extents({ offset: 5, length: 0 }, signal))).toEqual([]);
  const server = await fake({ contexts: { [BITMAP]: () => [], "qemu:dirty-bitmap:c": () => [] } });
  const opening = openNbdSource(parseNbdUri(server.uri), { bitmap: "x" }, signal);
  await expect(opening).rejects.toMatchObject({ kind: "notFound", code: "E_NBD_BITMAP" });
  await expect(opening).rejects.toThrow('offers no bitmap "x" but b, c');
});

test("block sizes are honoured: every request aligned and no longer than the maximum", async () => {
  const bytes = disk().subarray(0, 65_536 + 100);
  const blockSize = { minimum: 512, preferred: 4096, maximum: 10_000 };
  const server = await fake({
    disk: bytes,
    blockSize,
    contexts: { "base:allocation": ({ length }) => [[length, 0]] },
  });
  const from = await source(server);
  expect(await readAt(from, 1000, 60_000)).toEqual(bytes.subarray(1000, 61_000));
  expect(await readAt(from, 65_000, 636)).toEqual(bytes.subarray(65_000));
  expect(await readAt(from, 700, 10)).toEqual(bytes.subarray(700, 710));
  expect(await collect(from.extents({ offset: 700, length: 10 }, signal))).toEqual([
    { offset: 700, length: 10, state: "data" },
  ]);
  for (const { offset, length } of server.requests) {
    expect(offset % 512).toBe(0);
    expect(length % 512 === 0 || offset + length === bytes.length).toBe(true);
    expect(length).toBeLessThanOrEqual(9728);
  }
});

test("a range outside of the export is the caller's mistake", async () => {
  const from = await source(await fake({ disk: disk() }));
  await expect(from.read(from.size - 1, Buffer.alloc(2), signal)).rejects.toMatchObject({
    code: "E_NBD_RANGE",
  });
  await expect(collect(from.extents({ offset: -1, length: 1 }, signal))).rejects.toMatchObject({
    code: "E_NBD_RANGE",
  });
});

test("blocks smaller than the server's minimum are patched, two at once too", async () => {
  const bytes = disk();
  const expected = Buffer.from(bytes);
  const server = await fake({
    disk: bytes,
    flags: WRITABLE,
    blockSize: { minimum: 4096, preferred: 4096, maximum: 65_536 },
  });
  const into = await target(server);
  const writes = Array.from({ length: 10 }, (_, index) => ({ offset: 100 + index * 1000, length: 1000 }));
  writes.push({ offset: 20_000, length: 200_000 });
  await Promise.all(
    writes.map(({ offset, length }) => into.write(offset, Buffer.alloc(length, offset), signal)),
  );
  for (const { offset, length } of writes) expected.fill(offset & 0xff, offset, offset + length);
  await into.zero(230_001, 10_000, signal);
  expected.fill(0, 230_001, 240_001);
  expect(bytes.equals(expected)).toBe(true);
});

test("without WRITE_ZEROES zeros are written", async () => {
  const bytes = disk();
  const expected = Buffer.from(bytes).fill(0, 10, 200_000);
  const server = await fake({ disk: bytes, flags: WRITABLE });
  await (await target(server)).zero(10, 199_990, signal);
  expect(bytes.equals(expected)).toBe(true);
  expect(server.requests.map(({ type }) => type)).toEqual([Command.WRITE]);
});

test("a server that finds a WRITE_ZEROES too long gets shorter ones", async () => {
  const bytes = disk();
  const server = await fake({
    disk: bytes,
    flags: WRITABLE | ExportFlag.SEND_WRITE_ZEROES,
    blockSize: { minimum: 1, preferred: 4096, maximum: 65_536 },
    onRequest: ({ length }, _number, reply) =>
      length <= 65_536
        ? undefined
        : reply.chunk(ChunkType.ERROR, encodeErrorChunk({ error: Errno.EOVERFLOW, message: "" })),
  });
  const into = await target(server);
  await into.zero(0, 200_000, signal);
  expect(bytes.subarray(0, 200_000).every((byte) => byte === 0)).toBe(true);
  expect(server.requests.map(({ length }) => length)).toEqual([200_000, 65_536, 65_536, 65_536, 3392]);
});

test("flags go out only where the server knows them", async () => {
  const flags = WRITABLE | ExportFlag.SEND_TRIM | ExportFlag.SEND_WRITE_ZEROES;
  const server = await fake({ disk: disk(), flags });
  const into = await target(server, { fua: true });
  await into.write(0, Buffer.alloc(10), signal);
  await into.zero(0, 10, signal);
  await into.trim(0, 10, signal);
  await into.flush(signal);
  expect(server.requests.map(({ type, flags: sent }) => [type, sent])).toEqual([
    [Command.WRITE, CommandFlag.FUA],
    [Command.WRITE_ZEROES, CommandFlag.FUA],
    [Command.TRIM, CommandFlag.FUA],
    [Command.FLUSH, 0],
  ]);
  const poor = await fake({ disk: disk(), flags: ExportFlag.HAS_FLAGS });
  const other = await target(poor, { fua: true });
  await other.write(0, Buffer.alloc(10), signal);
  await other.trim(0, 10, signal);
  await other.flush(signal);
  expect(poor.requests.map(({ type, flags: sent }) => [type, sent])).toEqual([[Command.WRITE, 0]]);
});

test("with extended headers a write says that it carries a payload", async () => {
  const bytes = disk();
  const server = await fake({ disk: bytes, flags: WRITABLE, extended: true });
  const into = await target(server);
  await into.write(1, Buffer.from("hello"), signal);
  expect(bytes.subarray(1, 6).toString()).toBe("hello");
  expect(server.requests[0]).toMatchObject({ type: Command.WRITE, flags: CommandFlag.PAYLOAD_LEN });
});

test("a read-only export is refused as a target", async () => {
  const server = await fake({ disk: disk(), flags: WRITABLE | ExportFlag.READ_ONLY });
  const opening = openNbdTarget(parseNbdUri(server.uri), {}, signal);
  await expect(opening).rejects.toMatchObject({ kind: "usage", code: "E_NBD_READ_ONLY" });
});

test("writes that a lost connection left without an answer are made again", async () => {
  const bytes = disk();
  const server = await fake({
    disk: bytes,
    flags: WRITABLE,
    onRequest: (_request, number) => (server.connections === 1 && number === 0 ? "close" : undefined),
  });
  const into = await target(server);
  await Promise.all([1, 2, 3].map((index) => into.write(index * 1000, Buffer.alloc(1000, index), signal)));
  await into.flush(signal);
  for (const index of [1, 2, 3]) expect(bytes[index * 1000 + 999]).toBe(index);
});

test("what was acknowledged but not flushed when the server went away does not count as written", async () => {
  const server = await fake({ disk: disk(), flags: WRITABLE });
  const into = await target(server);
  await into.write(0, Buffer.alloc(10), signal);
  await into.flush(signal);
  server.dropAll();
  await into.write(10, Buffer.alloc(10), signal);
  await into.flush(signal); // the first write was safe, the second came after
  await into.write(20, Buffer.alloc(10), signal);
  server.dropAll();
  await into.write(30, Buffer.alloc(10), signal);
  await expect(into.flush(signal)).rejects.toMatchObject({ kind: "source", code: "E_NBD_UNFLUSHED" });
  await expect(into.flush(signal)).rejects.toMatchObject({ code: "E_NBD_UNFLUSHED" });
});

test("an export is described", async () => {
  const server = await fake({
    disk: disk(),
    flags: ExportFlag.HAS_FLAGS | ExportFlag.READ_ONLY,
    extended: true,
    contexts: { [BITMAP]: () => [] },
  });
  expect(await describeExport(parseNbdUri(server.uri), signal)).toEqual({
    size: 262_144,
    description: "",
    readOnly: true,
    blockSize: { minimum: 1, preferred: 4096, maximum: 33_554_432 },
    contexts: [BITMAP],
    structuredReplies: true,
    extendedHeaders: true,
    multiConn: false,
    tls: false,
  });
  expect(server.farewells).toBe(1);
});
