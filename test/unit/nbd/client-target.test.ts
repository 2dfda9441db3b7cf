import { expect, test } from "vitest";
import { ChunkType, Command, CommandFlag, Errno, ExportFlag } from "../../../src/nbd/constants.ts";
import { encodeErrorChunk } from "../../../src/nbd/messages.ts";
import { openNbdTarget } from "../../../src/nbd/target.ts";
import { parseNbdUri } from "../../../src/nbd/uri.ts";
import { disk, fake, target } from "../../support/fake-nbd-disks.ts";

const { signal } = new AbortController();
const WRITABLE = ExportFlag.HAS_FLAGS | ExportFlag.SEND_FLUSH | ExportFlag.SEND_FUA;

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
