import { expect, test, vi } from "vitest";
import { ChunkType, Command } from "../../../src/nbd/constants.ts";
import { encodeDataPrefix, encodeHole } from "../../../src/nbd/messages.ts";
import { openNbdSource } from "../../../src/nbd/source.ts";
import { parseNbdUri } from "../../../src/nbd/uri.ts";
import { collect } from "../../support/collect.ts";
import { QUICK, disk, fake, readAt, source } from "../../support/fake-nbd-disks.ts";

const { signal } = new AbortController();
const NOTHING = Buffer.alloc(0);
const BITMAP = "qemu:dirty-bitmap:b";

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

test("a call that is aborted in the very moment its turn comes is not made", async () => {
  const server = await fake({
    disk: disk(),
    onRequest: (_request, number) => (number < 15 ? "silence" : undefined),
  });
  const from = await source(server);
  const others = new AbortController();
  const reads = Array.from({ length: 16 }, () => from.read(0, Buffer.alloc(10), others.signal));
  const abort = new AbortController();
  const removeListener = abort.signal.removeEventListener.bind(abort.signal);
  vi.spyOn(abort.signal, "removeEventListener").mockImplementation(
    (...args: Parameters<AbortSignal["removeEventListener"]>) => {
      removeListener(...args);
      abort.abort(new Error("enough")); // the one who waits for a turn listens no more, and has not gone on yet
    },
  );
  await expect(from.read(0, Buffer.alloc(20), abort.signal)).rejects.toThrow("enough");
  expect(server.requests.map(({ length }) => length)).toEqual(Array.from({ length: 16 }, () => 10));
  others.abort();
  await Promise.allSettled(reads);
});

test("an aborted signal stops a call before it begins", async () => {
  const server = await fake({ disk: disk() });
  const from = await source(server);
  await expect(from.read(0, Buffer.alloc(10), AbortSignal.abort(new Error("no")))).rejects.toThrow("no");
  expect(server.requests).toEqual([]);
  const opening = openNbdSource(parseNbdUri(server.uri), {}, AbortSignal.abort(new Error("no")));
  await expect(opening).rejects.toThrow("no");
});

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
