import { describe, expect, test } from "vitest";
import type { Extent } from "../../../src/disk/disk.ts";
import { ChunkType, Command, CommandFlag, Errno, ExportFlag } from "../../../src/nbd/constants.ts";
import {
  decodeBlockStatus,
  decodeDataPrefix,
  decodeErrorChunk,
  decodeExtendedBlockStatus,
  decodeHole,
} from "../../../src/nbd/messages.ts";
import type { ServedDisk } from "../../../src/nbd/server/served-disk.ts";
import { MemoryDisk, patterned } from "../../support/memory-disk.ts";
import { RawNbdClient, requestAt, type RawChunk } from "../../support/raw-nbd-client.ts";
import { serve } from "../../support/serve.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const TiB = 1024 ** 4;

async function connected(
  path: string,
  style: "simple" | "structured" | "extended" = "structured",
  queries: readonly string[] = [],
): Promise<RawNbdClient> {
  const client = await RawNbdClient.connect(path);
  await client.go("disk", style, queries);
  return client;
}

/** Error number of a reply that is one error chunk. */
function errorOf(chunks: readonly RawChunk[]): number {
  expect(chunks).toHaveLength(1);
  return decodeErrorChunk(chunks[0]!.type, chunks[0]!.payload).error;
}

/** Resolves when the server has dealt with everything that came to it before. */
async function settled(path: string): Promise<void> {
  for (let round = 0; round < 3; round++) {
    const client = await connected(path);
    client.request(Command.READ, { offset: 1, length: 0 });
    await client.chunks();
    client.socket.destroy();
  }
}

describe("extended headers", () => {
  /** 64 TiB of nothing but for the last MiB. */
  const huge: ServedDisk = {
    size: 64 * TiB,
    readOnly: false,
    blockSize: { minimum: 1, preferred: 4096, maximum: 32 * MiB },
    read: (_offset, into) => {
      into.fill(7);
      return Promise.resolve();
    },
    async *extents({ offset, length }): AsyncGenerator<Extent> {
      await Promise.resolve();
      const edge = Math.max(offset, 64 * TiB - MiB);
      if (edge > offset) yield { offset, length: Math.min(edge - offset, length), state: "zero" };
      if (offset + length > edge) yield { offset: edge, length: offset + length - edge, state: "data" };
    },
  };

  test("block status of a whole disk past 32 bits in one reply", async () => {
    const { path } = await serve({ disk: huge });
    const client = await connected(path, "extended", ["base:allocation"]);
    client.request(Command.BLOCK_STATUS, { offset: 512, length: 64 * TiB - 512 });
    const [chunk, ...more] = await client.chunks();
    expect(more).toEqual([]);
    expect(chunk).toMatchObject({ type: ChunkType.BLOCK_STATUS_EXT, offset: 512 });
    expect(decodeExtendedBlockStatus(chunk!.payload)).toEqual({
      contextId: 1,
      lengths: Float64Array.of(64 * TiB - MiB - 512, MiB),
      flags: Float64Array.of(3, 0),
    });
  });

  test("reads carry the request's offset in each header", async () => {
    const { path } = await serve({ disk: huge });
    const client = await connected(path, "extended");
    const at = 64 * TiB - MiB - 4096;
    client.request(Command.READ, { offset: at, length: 8192 });
    const chunks = await client.chunks();
    expect(chunks).toMatchObject([
      { type: ChunkType.OFFSET_HOLE, offset: at, cookie: 1n, flags: 0 },
      { type: ChunkType.OFFSET_DATA, offset: at, cookie: 1n, flags: 1 },
    ]);
    expect(decodeHole(chunks[0]!.payload)).toEqual({ offset: at, length: 4096 });
    expect(decodeDataPrefix(chunks[1]!.payload.subarray(0, 8))).toBe(at + 4096);
    expect(chunks[1]!.payload.subarray(8)).toEqual(Buffer.alloc(4096, 7));
  });

  test("writes need PAYLOAD_LEN, others must not have it, and payload is read away in any case", async () => {
    const disk = new MemoryDisk(Buffer.alloc(5 * 1024));
    const { path } = await serve({ disk });
    const client = await connected(path, "extended");
    client.request(Command.WRITE, { offset: 1024 }, patterned(512));
    expect(await client.chunks()).toMatchObject([{ type: ChunkType.NONE, offset: 1024, length: 0 }]);
    client.request(Command.WRITE, { offset: 0, length: 512 });
    expect(errorOf(await client.chunks())).toBe(Errno.EINVAL);
    client.request(Command.READ, { offset: 0 }, patterned(512));
    expect(errorOf(await client.chunks())).toBe(Errno.EINVAL);
    client.request(Command.BLOCK_STATUS, { offset: 0 }, patterned(12));
    expect(errorOf(await client.chunks())).toBe(Errno.EINVAL);
    client.request(Command.WRITE_ZEROES, { offset: 1024, length: 4096 });
    expect(await client.chunks()).toMatchObject([{ type: ChunkType.NONE }]);
    expect(disk.calls).toEqual(["write 1024+512", "zero 1024+4096 trim"]);
  });

  test("a senseless offset is an error that repeats it", async () => {
    const { path } = await serve({ disk: huge });
    const client = await connected(path, "extended");
    client.send(requestAt(0xffff_ffff_ffff_fff0n, Command.READ, 512, true));
    const reply = await client.read(32);
    expect(reply.readBigUInt64BE(16)).toBe(0xffff_ffff_ffff_fff0n);
    expect(
      decodeErrorChunk(ChunkType.ERROR, await client.read(Number(reply.readBigUInt64BE(24)))).error,
    ).toBe(Errno.EINVAL);
    client.request(Command.READ, { offset: 2 ** 53 - 4096, length: 4096 });
    expect(errorOf(await client.chunks())).toBe(Errno.EINVAL);
  });
});

describe("requests", () => {
  test("answers come as they are ready, matched by cookie", async () => {
    const disk = new MemoryDisk(patterned(64 * KiB));
    let open = (): void => undefined;
    disk.gate = new Promise((resolve) => (open = resolve));
    const { path } = await serve({ disk });
    const client = await connected(path);
    const slow = client.request(Command.READ, { length: 4096 });
    const quick = client.request(Command.FLUSH);
    expect(await client.chunks()).toMatchObject([{ cookie: quick }]);
    open();
    expect(await client.chunks()).toMatchObject([{ cookie: slow, type: ChunkType.OFFSET_DATA }]);
  });

  test("status in 32 bits, several contexts, one chunk each", async () => {
    const zeros = [{ offset: 4096, length: 4096 }];
    const disk = new MemoryDisk(patterned(65_536), { zeros, dirty: [{ offset: 8192, length: 100 }] });
    const { path } = await serve({ disk });
    const client = await connected(path, "structured", ["qemu:dirty-bitmap:bitmap0", "base:allocation"]);
    client.request(Command.BLOCK_STATUS, { offset: 6000, length: 6000 });
    const chunks = await client.chunks();
    expect(chunks.map(({ flags }) => flags)).toEqual([0, 1]);
    expect(chunks.map(({ payload }) => decodeBlockStatus(payload))).toEqual([
      { contextId: 1, lengths: Float64Array.of(2192, 3808), flags: Float64Array.of(3, 0) },
      { contextId: 2, lengths: Float64Array.of(2192, 100, 3708), flags: Float64Array.of(0, 1, 0) },
    ]);
    client.request(Command.BLOCK_STATUS, { offset: 6000, length: 2000, flags: CommandFlag.REQ_ONE });
    const one = (await client.chunks()).map(({ payload }) => [...decodeBlockStatus(payload).lengths]);
    expect(one).toEqual([[2000], [2000]]);
  });

  test("status of very many extents stops somewhere and can be asked on from there", async () => {
    const zeros = Array.from({ length: 20_000 }, (_, index) => ({ offset: 10 * index, length: 5 }));
    const { path } = await serve({ disk: new MemoryDisk(Buffer.alloc(200_000), { zeros }) });
    const client = await connected(path, "structured", ["base:allocation"]);
    const counts: number[] = [];
    for (let at = 0; at < 200_000;) {
      client.request(Command.BLOCK_STATUS, { offset: at, length: 200_000 - at });
      const { lengths } = decodeBlockStatus((await client.chunks())[0]!.payload);
      counts.push(lengths.length);
      at += lengths.reduce((sum, length) => sum + length, 0);
    }
    expect(counts).toEqual([32_768, 7232]);
  });

  test("a read in very many pieces comes as data", async () => {
    const zeros = Array.from({ length: 50 }, (_, index) => ({ offset: 100 * index, length: 50 }));
    const { path } = await serve({ disk: new MemoryDisk(patterned(5000), { zeros }) });
    const client = await connected(path);
    client.request(Command.READ, { offset: 0, length: 5000 });
    expect(await client.chunks()).toMatchObject([{ type: ChunkType.OFFSET_DATA, length: 5008 }]);
    client.request(Command.READ, { offset: 0, length: 3000 });
    expect(await client.chunks()).toHaveLength(60);
  });

  test.each(["simple", "structured", "extended"] as const)(
    "of 0 bytes are no trouble (%s)",
    async (style) => {
      const disk = new MemoryDisk(patterned(512), { zeros: [] });
      const { path } = await serve({ disk });
      const client = await connected(path, style);
      const succeeds = async (): Promise<void> => {
        if (style === "simple") expect(await client.simpleReply()).toMatchObject({ error: 0 });
        else expect(await client.chunks()).toMatchObject([{ type: ChunkType.NONE }]);
      };
      for (const type of [Command.READ, Command.TRIM, Command.WRITE_ZEROES]) {
        client.request(type, { offset: 512, length: 0 });
        await succeeds();
      }
      client.request(Command.WRITE, { offset: 0 }, new Uint8Array(0));
      await succeeds();
      expect(disk.calls).toEqual([]);
    },
  );

  test("unknown commands and flags are refused, also on simple replies", async () => {
    const { path } = await serve({ disk: new MemoryDisk(patterned(4096)) });
    const client = await connected(path, "simple");
    const refused = async (type: number, flags: number): Promise<void> => {
      client.request(type, { flags, length: 512 });
      expect(await client.simpleReply()).toMatchObject({ error: Errno.EINVAL });
    };
    await refused(99, 0);
    await refused(Command.CACHE, 0);
    await refused(Command.RESIZE, 0);
    await refused(Command.READ, CommandFlag.DF);
    await refused(Command.READ, CommandFlag.NO_HOLE);
    await refused(Command.WRITE_ZEROES, CommandFlag.FAST_ZERO);
    await refused(Command.TRIM, 0x8000);
    await refused(Command.BLOCK_STATUS, 0);
    await refused(Command.FLUSH, 0);
    client.request(Command.READ, { flags: CommandFlag.FUA, length: 512 });
    expect(await client.simpleReply()).toMatchObject({ error: 0 });
    expect(await client.read(512)).toEqual(patterned(4096).subarray(0, 512));
  });

  test("payload of a refused write is not taken for the next request", async () => {
    const disk = new MemoryDisk(patterned(4096), { readOnly: true });
    const { path } = await serve({ disk });
    const client = await connected(path);
    const lying = Buffer.alloc(3 * MiB, requestAt(0n, Command.READ, 1));
    client.request(Command.WRITE, {}, lying);
    expect(errorOf(await client.chunks())).toBe(Errno.EPERM);
    client.request(Command.READ, { length: 5 });
    expect(await client.chunks()).toMatchObject([{ cookie: 2n, length: 13 }]);
  });

  test("the last block of a disk may be short", async () => {
    const blockSize = { minimum: 512, preferred: 4096, maximum: MiB };
    const { path } = await serve({ disk: new MemoryDisk(patterned(1300), { blockSize }) });
    const client = await connected(path);
    client.request(Command.READ, { offset: 1024, length: 276 });
    expect(await client.chunks()).toMatchObject([{ length: 284 }]);
    client.request(Command.READ, { offset: 1024, length: 275 });
    expect(errorOf(await client.chunks())).toBe(Errno.EINVAL);
    client.request(Command.READ, { offset: 100, length: 412 });
    expect(errorOf(await client.chunks())).toBe(Errno.EINVAL);
  });

  test("a disk whose map has a gap fails the request instead of inventing an answer", async () => {
    const { size, blockSize, read } = new MemoryDisk(patterned(4096));
    const extents = async function* (): AsyncGenerator<Extent> {
      yield await Promise.resolve({ offset: 0, length: 1000, state: "zero" });
      yield { offset: 1001, length: 3095, state: "zero" };
    };
    const { path, errors } = await serve({ disk: { size, blockSize, read, extents, readOnly: true } });
    const client = await connected(path, "structured", ["base:allocation"]);
    for (const type of [Command.READ, Command.BLOCK_STATUS]) {
      client.request(type, { length: 4096 });
      expect(errorOf(await client.chunks())).toBe(Errno.EIO);
    }
    expect(errors).toMatchObject([{ code: "E_SERVED_EXTENTS" }, { code: "E_SERVED_EXTENTS" }]);
  });

  test("flags say what a disk can do", async () => {
    const { read, blockSize } = new MemoryDisk(Buffer.alloc(1));
    const bare: ServedDisk = { size: 1, readOnly: false, blockSize, read };
    const write = (): Promise<void> => Promise.resolve();
    const { path } = await serve({ bare, writable: { ...bare, write } });
    const flagsOf = async (name: string): Promise<number> => {
      const [first] = await (await RawNbdClient.connect(path)).go(name, "structured");
      return first?.type === 0 ? first.flags : NaN;
    };
    const always = ExportFlag.HAS_FLAGS | ExportFlag.CAN_MULTI_CONN | ExportFlag.SEND_DF;
    expect(await flagsOf("bare")).toBe(always | ExportFlag.READ_ONLY);
    expect(await flagsOf("writable")).toBe(always);
    const client = await RawNbdClient.connect(path);
    await client.go("writable", "structured");
    for (const type of [Command.WRITE_ZEROES, Command.TRIM, Command.FLUSH]) {
      client.request(type, { length: type === Command.FLUSH ? 0 : 1 });
      expect(errorOf(await client.chunks())).toBe(Errno.EINVAL);
    }
  });
});

describe("bounds", () => {
  test("a client that does not read its answers stops being served, not the others", async () => {
    const blockSize = { minimum: 1, preferred: 4096, maximum: MiB };
    const disk = new MemoryDisk(patterned(MiB), { blockSize });
    const { path } = await serve({ disk }, { bytesMax: 4 * MiB, requestsMax: 50 });
    const client = await connected(path, "simple");
    for (let count = 0; count < 40; count++) client.request(Command.READ, { length: MiB });
    while (disk.calls.length < 4) await settled(path);
    await settled(path);
    // Four answers wait in memory; what the socket's own buffers took makes room for another, perhaps two.
    expect(disk.calls.length).toBeLessThanOrEqual(6);
    for (let count = 0; count < 40; count++) {
      expect(await client.simpleReply()).toEqual({ error: 0, cookie: BigInt(count + 1) });
      expect((await client.read(MiB)).equals(disk.bytes)).toBe(true);
    }
  });

  test("requests of one client under way are counted", async () => {
    const disk = new MemoryDisk(patterned(4096));
    let open = (): void => undefined;
    disk.gate = new Promise((resolve) => (open = resolve));
    const { path } = await serve({ disk }, { requestsMax: 3 });
    const client = await connected(path);
    for (let count = 0; count < 10; count++) client.request(Command.READ, { length: 512 });
    client.request(99);
    while (disk.reading < 3) await new Promise(setImmediate);
    const other = await connected(path);
    other.request(Command.FLUSH);
    await other.chunks();
    expect(disk.reading).toBe(3);
    open();
    for (let count = 0; count < 11; count++) await client.chunks();
  });

  test.each([
    { title: "a request without its magic number", bytes: Buffer.alloc(28, 0x55) },
    { title: "a payload past 32 MiB", bytes: requestAt(0n, Command.WRITE, 2 ** 25 + 1) },
    { title: "an option after GO", bytes: Buffer.from("IHAVEOPT0000000000000000000000000000") },
  ])("$title ends the connection", async ({ bytes }) => {
    const { path, errors } = await serve({ disk: new MemoryDisk(patterned(4096)) });
    const client = await connected(path);
    client.send(bytes);
    expect(await client.closed()).toHaveLength(0);
    expect(errors).toMatchObject([{ code: "E_NBD_PROTOCOL" }]);
    await settled(path);
  });
});

describe("the end", () => {
  test("DISC lets requests before it finish", async () => {
    const disk = new MemoryDisk(patterned(4096));
    let open = (): void => undefined;
    disk.gate = new Promise((resolve) => (open = resolve));
    const { path, errors } = await serve({ disk });
    const client = await connected(path);
    client.request(Command.READ, { length: 512 });
    client.request(Command.WRITE, { offset: 1000 }, patterned(100));
    client.request(Command.DISC);
    client.socket.end();
    expect(await client.chunks()).toMatchObject([{ cookie: 2n, type: ChunkType.NONE }]);
    open();
    expect(await client.chunks()).toMatchObject([{ cookie: 1n, type: ChunkType.OFFSET_DATA }]);
    expect(await client.closed()).toHaveLength(0);
    expect(errors).toEqual([]);
  });

  test("a client that vanishes takes its reads with it", async () => {
    const disk = new MemoryDisk(patterned(4096));
    disk.gate = new Promise(() => undefined);
    const { path, errors } = await serve({ disk });
    const client = await connected(path);
    client.request(Command.READ, { length: 512 });
    while (disk.reading === 0) await new Promise(setImmediate);
    client.socket.destroy();
    while (disk.reading > 0) await new Promise(setImmediate);
    expect(disk.aborted).toBe(1);
    expect(errors).toEqual([]);
  });

  test("close answers what is under way, takes nothing more, and ends idle connections", async () => {
    const disk = new MemoryDisk(patterned(4096));
    let open = (): void => undefined;
    disk.gate = new Promise((resolve) => (open = resolve));
    const { server, path } = await serve({ disk });
    const haggling = await RawNbdClient.connect(path);
    await haggling.greet();
    const idle = await connected(path);
    const busy = await connected(path);
    busy.request(Command.READ, { length: 512 });
    while (disk.reading === 0) await new Promise(setImmediate);
    const closing = server.close();
    await haggling.closed();
    expect(await idle.closed()).toHaveLength(0);
    open();
    expect(await busy.chunks()).toMatchObject([{ type: ChunkType.OFFSET_DATA }]);
    expect(await busy.closed()).toHaveLength(0);
    await closing;
    await expect(RawNbdClient.connect(path)).rejects.toMatchObject({ code: "ENOENT" });
  });

  test("close cuts off who does not take the answers, and a disk that does not answer", async () => {
    const disk = new MemoryDisk(patterned(MiB));
    const { server, path } = await serve({ disk }, { lingerMs: 50 });
    const lazy = await connected(path);
    for (let count = 0; count < 5; count++) lazy.request(Command.READ, { length: MiB });
    while (disk.calls.length < 5) await new Promise(setImmediate);
    disk.gate = new Promise(() => undefined);
    const stuck = await connected(path);
    stuck.request(Command.READ, { length: 512 });
    while (disk.reading === 0) await new Promise(setImmediate);
    await server.close();
    expect(disk.aborted).toBe(1);
    await Promise.all([lazy.closed(), stuck.closed()]);
  });
});
