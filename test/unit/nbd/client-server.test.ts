import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import fc from "fast-check";
import { expect, onTestFinished, test } from "vitest";
import { BlockMap } from "../../../src/disk/block-map.ts";
import type { Extent } from "../../../src/disk/disk.ts";
import { endOf, mergeNeighbours, sameState } from "../../../src/disk/extents.ts";
import { describeExport, listExports } from "../../../src/nbd/exports.ts";
import { openNbdSource } from "../../../src/nbd/source.ts";
import { openNbdTarget } from "../../../src/nbd/target.ts";
import { parseNbdUri } from "../../../src/nbd/uri.ts";
import type { ServedDisk } from "../../../src/nbd/server/served-disk.ts";
import { NbdServer } from "../../../src/nbd/server/server.ts";
import { MemoryDisk, patterned } from "../../support/memory-disk.ts";
import { serve, testFolder } from "../../support/serve.ts";

/** Our client and our server together, extended headers and all. Each is held to other people's elsewhere. */

const TiB = 1024 ** 4;
const signal = new AbortController().signal;

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

/** A disk whose map is what its bytes are, in sectors of 8 bytes, and that remembers writes in blocks of 64. */
function modelDisk(size: number, minimum: number): { disk: ServedDisk; bytes: Buffer; written: BlockMap } {
  const memory = new MemoryDisk(Buffer.alloc(size));
  const written = new BlockMap(size, 64);
  const { bytes } = memory;
  const sectors = function* (offset: number, end: number): Generator<Extent> {
    for (let at = offset; at < end; at++) {
      const sector = bytes.subarray(at - (at % 8), at - (at % 8) + 8);
      yield { offset: at, length: 1, state: sector.every((byte) => byte === 0) ? "zero" : "data" };
    }
  };
  const disk: ServedDisk = {
    size,
    readOnly: false,
    blockSize: { minimum, preferred: 4096, maximum: 4096 },
    read: memory.read.bind(memory),
    write: async (offset, from) => {
      written.mark({ offset, length: from.length });
      await memory.write(offset, from);
    },
    zero: async (offset, length, mayTrim) => {
      written.mark({ offset, length });
      await memory.zero(offset, length, mayTrim);
    },
    flush: memory.flush.bind(memory),
    async *extents(range): AsyncGenerator<Extent> {
      await Promise.resolve();
      yield* sectors(range.offset, endOf(range));
    },
    dirty: {
      name: "b",
      async *extents(range) {
        await Promise.resolve();
        yield* written.extents(range);
      },
    },
  };
  return { disk, bytes, written };
}

test("what the client writes, zeroes, reads and asks is what the disk has", async () => {
  const step = fc.record({
    what: fc.constantFrom("write", "zero", "read", "extents"),
    at: fc.nat(9999),
    length: fc.nat(9000),
    value: fc.integer({ min: 0, max: 255 }),
  });
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 1, max: 10_000 }),
      fc.constantFrom(1, 8, 512),
      fc.array(step, { minLength: 1, maxLength: 12 }),
      async (wish, minimum, steps) => {
        const size = Math.max(minimum, wish - (wish % minimum));
        const { disk, bytes, written } = modelDisk(size, minimum);
        const folder = await testFolder();
        const server = await NbdServer.listen(new Map([["d", disk]]), { path: join(folder, "s") });
        const address = parseNbdUri(server.uri("d"));
        const target = await openNbdTarget(address, {}, signal);
        const source = await openNbdSource(address, { bitmap: "b", connections: 2 }, signal);
        const model = Buffer.alloc(size);
        try {
          for (const { what, at, length, value } of steps) {
            const offset = at % size;
            const end = Math.min(size, offset + length);
            if (what === "write") {
              model.fill(value, offset, end);
              await target.write(offset, Buffer.alloc(end - offset, value), signal);
            } else if (what === "zero") {
              model.fill(0, offset, end);
              await target.zero(offset, end - offset, signal);
            } else if (what === "read") {
              const into = Buffer.alloc(end - offset, 0xee);
              await source.read(offset, into, signal);
              expect(into.equals(model.subarray(offset, end))).toBe(true);
            } else {
              const range = { offset, length: end - offset };
              const zero = (byte: number): boolean =>
                model.subarray(byte - (byte % 8), byte - (byte % 8) + 8).every((value) => value === 0);
              const want = [...written.extents(range)].flatMap((part) =>
                Array.from({ length: part.length }, (_, index): Extent => {
                  const byte = part.offset + index;
                  return {
                    offset: byte,
                    length: 1,
                    state: !part.dirty ? "unchanged" : zero(byte) ? "zero" : "data",
                  };
                }),
              );
              expect(await collect(source.extents(range, signal))).toEqual([
                ...mergeNeighbours(want, sameState),
              ]);
            }
          }
          await target.flush(signal);
          expect(bytes.equals(model)).toBe(true);
        } finally {
          await Promise.all([target.close(), source.close()]);
          await server.close();
        }
      },
    ),
    { numRuns: 40 },
  );
});

test("the map of 64 TiB takes one question, by extended headers", async () => {
  const data = [0, 5 * TiB + 3, 64 * TiB - 1].map((offset): Extent => ({ offset, length: 1, state: "data" }));
  let asked = 0;
  const disk: ServedDisk = {
    size: 64 * TiB,
    readOnly: true,
    blockSize: { minimum: 1, preferred: 4096, maximum: 32 * 1024 * 1024 },
    read: () => Promise.reject(new Error("nobody should read")),
    async *extents(range): AsyncGenerator<Extent> {
      asked++;
      let at = range.offset;
      for (const extent of data.filter(({ offset }) => offset >= range.offset)) {
        await Promise.resolve();
        if (extent.offset > at) yield { offset: at, length: extent.offset - at, state: "zero" };
        yield extent;
        at = endOf(extent);
      }
    },
  };
  const { server } = await serve({ huge: disk });
  const source = await openNbdSource(parseNbdUri(server.uri("huge")), {}, signal);
  onTestFinished(() => source.close());
  const extents = await collect(source.extents({ offset: 0, length: 64 * TiB }, signal));
  expect(extents.filter(({ state }) => state === "data")).toEqual(data);
  expect(extents.reduce((sum, { length }) => sum + length, 0)).toBe(64 * TiB);
  expect(asked).toBe(1);
});

test("exports are listed and described", async () => {
  const disk = new MemoryDisk(patterned(1234), { description: "one of two", dirty: [] });
  const { server } = await serve({ one: disk, two: new MemoryDisk(patterned(1), { readOnly: true }) });
  const address = parseNbdUri(server.uri("one"));
  expect(await listExports(address, signal)).toEqual([
    { name: "one", description: "one of two" },
    { name: "two" },
  ]);
  expect(await describeExport(address, signal)).toMatchObject({
    size: 1234,
    description: "one of two",
    readOnly: false,
    contexts: ["base:allocation", "qemu:dirty-bitmap:bitmap0"],
    extendedHeaders: true,
    multiConn: true,
  });
});

test("keys: the right one opens, another one does not", async () => {
  const folder = await testFolder();
  const key = Buffer.alloc(32, 7);
  await writeFile(join(folder, "right"), `backup:${key.toString("hex")}\n`);
  await writeFile(join(folder, "wrong"), `backup:${Buffer.alloc(32, 8).toString("hex")}\n`);
  const tls = { type: "psk", keys: new Map([["backup", key]]) } as const;
  const disk = new MemoryDisk(patterned(300_000));
  const { server } = await serve({ disk }, { tls });
  const address = (file: string): ReturnType<typeof parseNbdUri> =>
    parseNbdUri(`${server.uri("disk")}&tls-psk-file=${join(folder, file)}`);
  const source = await openNbdSource(address("right"), {}, signal);
  onTestFinished(() => source.close());
  const into = Buffer.alloc(300_000);
  await source.read(0, into, signal);
  expect(into.equals(disk.bytes)).toBe(true);
  await expect(openNbdSource(address("wrong"), {}, signal)).rejects.toMatchObject({ kind: "credentials" });
});

test("a server that closes ends its TLS sessions, also one that waits for a disk", async () => {
  const key = Buffer.alloc(32, 7);
  const file = join(await testFolder(), "keys");
  await writeFile(file, `backup:${key.toString("hex")}\n`);
  const disk = new MemoryDisk(patterned(300_000));
  const tls = { type: "psk", keys: new Map([["backup", key]]) } as const;
  const { server } = await serve({ disk }, { tls, lingerMs: 20 });
  const retry = { attemptsMax: 1, baseMs: 1, waitMaxMs: 1, budgetMs: 1 };
  const address = parseNbdUri(`${server.uri("disk")}&tls-psk-file=${file}`);
  const source = await openNbdSource(address, { retry }, signal);
  onTestFinished(() => source.close());
  disk.gate = new Promise(() => undefined);
  const reading = source.read(0, Buffer.alloc(1000), signal).catch((error: unknown) => error);
  while (disk.reading === 0) await new Promise(setImmediate);
  await server.close();
  expect(await reading).toMatchObject({ kind: "source" });
  expect(disk.aborted).toBe(1);
});

test("a server that goes and comes back in the middle costs no byte", async () => {
  const folder = await testFolder();
  const disk = new MemoryDisk(patterned(2_000_000));
  const exports = new Map([["disk", disk]]);
  const place = { path: join(folder, "socket") };
  let server = await NbdServer.listen(exports, place, { lingerMs: 10 });
  onTestFinished(() => server.close());
  const retry = { attemptsMax: 50, baseMs: 5, waitMaxMs: 20, budgetMs: 30_000 };
  const source = await openNbdSource(parseNbdUri(server.uri("disk")), { retry }, signal);
  onTestFinished(() => source.close());
  disk.gate = new Promise(() => undefined);
  const into = Buffer.alloc(2_000_000);
  const reading = source.read(0, into, signal);
  while (disk.reading === 0) await new Promise(setImmediate);
  await server.close();
  disk.gate = Promise.resolve();
  server = await NbdServer.listen(exports, place);
  await reading;
  expect(into.equals(disk.bytes)).toBe(true);
});
