import { expect, test } from "vitest";
import { ChunkType, Command, Errno, ExportFlag } from "../../../src/nbd/constants.ts";
import { encodeErrorChunk } from "../../../src/nbd/messages.ts";
import type { NbdSource } from "../../../src/nbd/source.ts";
import { disk, fake, readAt, source } from "../../support/fake-nbd-disks.ts";
import type { FakeServer } from "../../support/fake-nbd-server.ts";

const { signal } = new AbortController();

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
