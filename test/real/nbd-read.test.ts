import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { GiB, KiB, MiB, TiB } from "../../src/bytes/size.ts";
import type { Extent } from "../../src/disk/disk.ts";
import { describeExport, listExports } from "../../src/nbd/exports.ts";
import { openNbdSource, type NbdSource, type NbdSourceOptions } from "../../src/nbd/source.ts";
import { parseNbdUri } from "../../src/nbd/uri.ts";
import { collect } from "../support/collect.ts";
import { temporaryFolder } from "../support/folder.ts";
import { startNbdkit } from "../support/nbdkit.ts";
import type { NbdProcess, NbdProcessOptions } from "../support/nbd-process.ts";

const { signal } = new AbortController();

async function nbdkit(args: readonly string[], options: NbdProcessOptions = {}): Promise<NbdProcess> {
  const server = await startNbdkit(args, options);
  onTestFinished(() => server.stop());
  return server;
}

async function open(server: NbdProcess, options: NbdSourceOptions = {}): Promise<NbdSource> {
  const source = await openNbdSource(parseNbdUri(server.uri), options, signal);
  onTestFinished(() => source.close());
  return source;
}

async function readAt(source: NbdSource, offset: number, length: number): Promise<Buffer> {
  const into = Buffer.alloc(length, 0xee);
  await source.read(offset, into, signal);
  return into;
}

function extents(source: NbdSource, offset = 0, length = source.size - offset): Promise<Extent[]> {
  return collect(source.extents({ offset, length }, signal));
}

/** What nbdkit's pattern plugin has: each 8 bytes are their own offset, big-endian. */
function pattern(offset: number, length: number): Buffer {
  const start = Math.floor(offset / 8) * 8;
  const bytes = Buffer.alloc(Math.ceil((offset + length - start) / 8) * 8);
  for (let at = 0; at < bytes.length; at += 8) bytes.writeBigUInt64BE(BigInt(start + at), at);
  return bytes.subarray(offset - start, offset - start + length);
}

test.each([
  ["structured replies", []],
  ["simple replies", ["--no-sr"]],
  ["one request at a time", ["--threads=1"]],
  ["a server whose cuts are odd", ["--filter=blocksize", "maxdata=65536"]],
])("nbdkit with %s: any range, many at once", async (_what, args) => {
  const filters = args.filter((arg) => arg.startsWith("-"));
  const parameters = args.filter((arg) => !arg.startsWith("-"));
  const source = await open(await nbdkit([...filters, "pattern", "size=64M", ...parameters]));
  const ranges = Array.from({ length: 60 }, (_, index) => ({
    offset: (index * 1_000_003) % (60 * MiB),
    length: 1 + ((index * 77_777) % (512 * KiB)),
  }));
  await Promise.all(
    ranges.map(async ({ offset, length }) => {
      const same = (await readAt(source, offset, length)).equals(pattern(offset, length));
      expect(same, `${length} at ${offset}`).toBe(true);
    }),
  );
});

test("the end of a 64 TiB export, and reads into shared memory", async () => {
  const source = await open(await nbdkit(["pattern", "size=64T"]));
  expect(source.size).toBe(64 * TiB);
  expect(await readAt(source, 64 * TiB - 100_001, 100_001)).toEqual(pattern(64 * TiB - 100_001, 100_001));
  const shared = new Uint8Array(new SharedArrayBuffer(300_000), 1000, 200_000);
  await source.read(3 * GiB + 5, shared, signal);
  expect(Buffer.from(shared).equals(pattern(3 * GiB + 5, 200_000))).toBe(true);
});

test.each([0, 1, 511, 513, 4097])("an export of %i bytes", async (size) => {
  const source = await open(await nbdkit(["pattern", `size=${size}`]));
  expect(source.size).toBe(size);
  expect(await readAt(source, 0, size)).toEqual(pattern(0, size));
  expect(await extents(source)).toEqual(size === 0 ? [] : [{ offset: 0, length: size, state: "data" }]);
});

test("an empty 64 TiB export is one zero extent", async () => {
  const source = await open(await nbdkit(["null", "size=64T"]));
  expect(await extents(source)).toEqual([{ offset: 0, length: 64 * TiB, state: "zero" }]);
});

test("data far apart on a sparse export is found, and zeros come as holes", async () => {
  const data = `@${3 * TiB} 1 2 3 @${5 * TiB + 4096} 4`;
  const source = await open(await nbdkit(["data", `data=${data}`, "size=8T"]));
  const found = await extents(source);
  expect(found.filter(({ state }) => state === "data").map(({ offset }) => offset)).toEqual([
    3 * TiB,
    5 * TiB,
  ]);
  expect(found.reduce((sum, { length }) => sum + length, 0)).toBe(8 * TiB);
  expect(await readAt(source, 3 * TiB - 1, 5)).toEqual(Buffer.from([0, 1, 2, 3, 0]));
  expect(await readAt(source, 5 * TiB + 4095, 3)).toEqual(Buffer.from([0, 4, 0]));
});

test("a server that says nothing of its allocation is all data", async () => {
  const source = await open(await nbdkit(["--filter=noextents", "null", "size=10M"]));
  expect(await extents(source)).toEqual([{ offset: 0, length: 10 * MiB, state: "data" }]);
  const plain = await open(await nbdkit(["--no-sr", "null", "size=10M"]));
  expect(await extents(plain, 1000, 5)).toEqual([{ offset: 1000, length: 5, state: "data" }]);
});

const POLICY = ["--filter=blocksize-policy", "pattern", "blocksize-error-policy=error"];

test("a server that refuses whatever breaks its block sizes is read nonetheless", async () => {
  const sizes = ["blocksize-minimum=4096", "blocksize-preferred=65536", "blocksize-maximum=131072"];
  const source = await open(await nbdkit([...POLICY, "size=16M", ...sizes]));
  expect(source.blockSize).toEqual({ minimum: 4096, preferred: 65_536, maximum: 131_072 });
  for (const [offset, length] of [
    [0, 16 * MiB],
    [1, 1],
    [4095, 2],
    [5000, 1_000_000],
    [16 * MiB - 1, 1],
  ] as const) {
    expect((await readAt(source, offset, length)).equals(pattern(offset, length))).toBe(true);
  }
  expect(await extents(source, 5000, 3)).toEqual([{ offset: 5000, length: 3, state: "data" }]);
});

test("the last bytes of an export that is no multiple of its blocks", async () => {
  const size = MiB + 100;
  const strict = await open(await nbdkit([...POLICY, `size=${size}`, "blocksize-minimum=512"]));
  expect((await readAt(strict, 0, MiB)).equals(pattern(0, MiB))).toBe(true);
  // The protocol has no request for them, and this server insists: an error, never silence.
  await expect(strict.read(MiB, Buffer.alloc(100), signal)).rejects.toThrow(
    `Cannot read 100 bytes at ${MiB} of ${strict.name}: EINVAL`,
  );
  const kind = ["--filter=blocksize-policy", "pattern", `size=${size}`, "blocksize-minimum=512"];
  const lenient = await open(await nbdkit(kind));
  expect(await readAt(lenient, MiB - 5, 105)).toEqual(pattern(MiB - 5, 105));
});

test("an error fails the reads it hits, by errno, and no others", async () => {
  const folder = await temporaryFolder();
  const trigger = join(folder, "fail");
  const args = ["--filter=error", "pattern", "size=10M", "error-pread=EIO", "error-pread-rate=100%"];
  const server = await nbdkit([...args, `error-pread-file=${trigger}`]);
  const source = await open(server);
  await readAt(source, 0, 1000);
  await writeFile(trigger, "");
  await expect(source.read(4096, Buffer.alloc(512), signal)).rejects.toMatchObject({
    kind: "source",
    code: "E_NBD_READ",
    context: { offset: 4096, length: 512, errno: "EIO" },
  });
});

test("an error in the middle leaves the other reads alone", async () => {
  const pread = 'if [ "$4" -eq 8192 ]; then echo EIO bad block >&2; exit 1; fi; head -c "$3" /dev/zero';
  const server = await nbdkit(["eval", "get_size=echo 1048576", `pread=${pread}`]);
  const source = await open(server, { connections: 1 });
  const results = await Promise.allSettled(
    Array.from({ length: 8 }, (_, index) => readAt(source, index * 4096, 4096)),
  );
  expect(results.map(({ status }) => status).indexOf("rejected")).toBe(2);
  expect(results.filter(({ status }) => status === "rejected")).toHaveLength(1);
});

test("slow replies and an abort: the call ends, the source can be closed", async () => {
  const source = await open(await nbdkit(["--filter=delay", "pattern", "size=1M", "rdelay=3600"]));
  const abort = new AbortController();
  const read = source.read(0, Buffer.alloc(100 * KiB), abort.signal);
  abort.abort(new Error("enough"));
  await expect(read).rejects.toThrow("enough");
});

test("exports are listed and described", async () => {
  const folder = await temporaryFolder();
  await Promise.all([writeFile(join(folder, "a"), "12345"), writeFile(join(folder, "b c"), "")]);
  const server = await nbdkit(["file", `dir=${folder}`], { exportName: "a" });
  const address = parseNbdUri(server.uri);
  const names = (await listExports(address, signal)).map(({ name }) => name).sort();
  expect(names).toEqual(["a", "b c"]);
  expect(await describeExport(address, signal)).toMatchObject({
    size: 5,
    contexts: ["base:allocation"],
    structuredReplies: true,
    tls: false,
  });
});

test("an export that is not there is named, with those that are", async () => {
  const folder = await temporaryFolder();
  await writeFile(join(folder, "a"), "12345");
  const server = await nbdkit(["file", `dir=${folder}`]);
  const uri = server.uri.replace("///", "///nope");
  const opening = openNbdSource(parseNbdUri(uri), {}, signal);
  await expect(opening).rejects.toThrow("nope");
});

test("a server of the oldstyle protocol is refused with a reason", async () => {
  const opening = open(await nbdkit(["--oldstyle", "pattern", "size=1M"]));
  await expect(opening).rejects.toMatchObject({ code: "E_NBD_PROTOCOL" });
  await expect(opening).rejects.toThrow("oldstyle");
});

test("a server without GO and structured replies is read by the plain protocol", async () => {
  const source = await open(await nbdkit(["--mask-handshake=0", "pattern", "size=1M"]));
  expect(await readAt(source, 77, 70_000)).toEqual(pattern(77, 70_000));
});

test.each([
  ["nbd+unix:///?socket=/nonexistent/s", "there is no socket /nonexistent/s"],
  ["nbd://127.0.0.1:1/", "nobody listens on 127.0.0.1:1"],
  ["nbd://nosuch.invalid/", "nosuch.invalid"],
])("%s is given up at once", async (uri, reason) => {
  const opening = openNbdSource(parseNbdUri(uri), {}, signal);
  await expect(opening).rejects.toMatchObject({ kind: "source", code: "E_NBD_CONNECT" });
  await expect(opening).rejects.toThrow(reason);
});

test.each([
  ["127.0.0.1", "127.0.0.1"],
  ["127.0.0.1", "localhost"],
  ["::1", "[::1]"],
])("a server on %s is found as %s", async (listen, host) => {
  const server = await nbdkit(["--ipaddr", listen, "pattern", "size=1M"], { tcp: true });
  const source = await openNbdSource(parseNbdUri(server.uri.replace("127.0.0.1", host)), {}, signal);
  onTestFinished(() => source.close());
  expect(await readAt(source, 8, 8)).toEqual(pattern(8, 8));
});
