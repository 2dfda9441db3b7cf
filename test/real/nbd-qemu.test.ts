import { execFile } from "node:child_process";
import { truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, onTestFinished, test } from "vitest";
import { KiB, MiB, TiB } from "../../src/bytes/size.ts";
import type { Extent } from "../../src/disk/disk.ts";
import { describeExport } from "../../src/nbd/exports.ts";
import { openNbdSource, type NbdSource, type NbdSourceOptions } from "../../src/nbd/source.ts";
import { parseNbdUri } from "../../src/nbd/uri.ts";
import { collect } from "../support/collect.ts";
import { temporaryFolder } from "../support/folder.ts";
import type { NbdProcess } from "../support/nbd-process.ts";
import { startQemuNbd } from "../support/qemu-nbd.ts";

const { signal } = new AbortController();
const run = promisify(execFile);

async function qemuNbd(args: readonly string[]): Promise<NbdProcess> {
  const server = await startQemuNbd(["--read-only", ...args], { exportName: "disk" });
  onTestFinished(() => server.stop());
  return server;
}

async function open(server: NbdProcess, options: NbdSourceOptions = {}): Promise<NbdSource> {
  const source = await openNbdSource(parseNbdUri(server.uri), options, signal);
  onTestFinished(() => source.close());
  return source;
}

function extents(source: NbdSource, offset = 0, length = source.size - offset): Promise<Extent[]> {
  return collect(source.extents({ offset, length }, signal));
}

/** A qcow2 image; each command is one of qemu-io's. */
async function qcow2(size: string, ...commands: string[]): Promise<string> {
  const image = join(await temporaryFolder(), "disk.qcow2");
  await run("qemu-img", ["create", "-q", "-f", "qcow2", image, size]);
  await qemuIo(image, ...commands);
  return image;
}

async function qemuIo(image: string, ...commands: string[]): Promise<void> {
  if (commands.length === 0) return;
  await run("qemu-io", ["-f", "qcow2", ...commands.flatMap((command) => ["-c", command]), image]);
}

test("a dirty bitmap: what is dirty and zero is zero, what is not dirty is unchanged", async () => {
  const image = await qcow2("64M", "write -P 1 0 8M");
  await run("qemu-img", ["bitmap", "--add", "-g", "64k", image, "b0"]);
  await qemuIo(image, "write -P 2 1M 64k", "write -z 2M 192k", "write -P 3 32M 1", "discard 4M 1M");
  const server = await qemuNbd(["-f", "qcow2", "-B", "b0", image]);
  const source = await open(server, { bitmap: "b0" });
  expect(await extents(source)).toEqual([
    { offset: 0, length: MiB, state: "unchanged" },
    { offset: MiB, length: 64 * KiB, state: "data" },
    { offset: MiB + 64 * KiB, length: 960 * KiB, state: "unchanged" },
    { offset: 2 * MiB, length: 192 * KiB, state: "zero" },
    { offset: 2 * MiB + 192 * KiB, length: 2 * MiB - 192 * KiB, state: "unchanged" },
    { offset: 4 * MiB, length: MiB, state: "zero" },
    { offset: 5 * MiB, length: 27 * MiB, state: "unchanged" },
    { offset: 32 * MiB, length: 64 * KiB, state: "data" },
    { offset: 32 * MiB + 64 * KiB, length: 32 * MiB - 64 * KiB, state: "unchanged" },
  ]);
  expect(await extents(source, MiB + 1, 3)).toEqual([{ offset: MiB + 1, length: 3, state: "data" }]);
  const into = Buffer.alloc(64 * KiB);
  await source.read(MiB, into, signal);
  expect(into.equals(Buffer.alloc(64 * KiB, 2))).toBe(true);
});

test("without a bitmap allocation alone decides", async () => {
  const source = await open(await qemuNbd(["-f", "qcow2", await qcow2("1M", "write -P 1 64k 64k")]));
  expect(await extents(source)).toEqual([
    { offset: 0, length: 64 * KiB, state: "zero" },
    { offset: 64 * KiB, length: 64 * KiB, state: "data" },
    { offset: 128 * KiB, length: 896 * KiB, state: "zero" },
  ]);
});

test("several contexts are on offer, and a missing bitmap is told apart from a missing export", async () => {
  const image = await qcow2("1M");
  for (const name of ["one", "two"]) await run("qemu-img", ["bitmap", "--add", image, name]);
  const server = await qemuNbd(["-f", "qcow2", "-A", "-B", "one", "-B", "two", image]);
  const description = await describeExport(parseNbdUri(server.uri), signal);
  expect([...description.contexts].sort()).toEqual([
    "base:allocation",
    "qemu:allocation-depth",
    "qemu:dirty-bitmap:one",
    "qemu:dirty-bitmap:two",
  ]);
  expect(description).toMatchObject({ readOnly: true, blockSize: { minimum: 1, maximum: 32 * MiB } });
  await expect(open(server, { bitmap: "three" })).rejects.toMatchObject({
    kind: "notFound",
    code: "E_NBD_BITMAP",
    message: `NBD export ${server.uri} offers no bitmap "three" but one, two`,
  });
  const elsewhere = parseNbdUri(server.uri.replace("disk", "other"));
  await expect(openNbdSource(elsewhere, { bitmap: "one" }, signal)).rejects.toMatchObject({
    kind: "notFound",
    code: "E_NBD_EXPORT",
    message: `NBD server of ${elsewhere.uri} has no export "other" but "disk"`,
  });
});

test("more pieces than one reply holds, all of them found", async () => {
  const image = join(await temporaryFolder(), "disk.raw");
  const piece = Buffer.alloc(4096, 1);
  const pieces = Buffer.concat(
    Array.from({ length: 2000 }, () => Buffer.concat([piece, Buffer.alloc(4096)])),
  );
  await writeFile(image, pieces);
  await run("fallocate", ["--dig-holes", image]);
  const source = await open(await qemuNbd(["-f", "raw", image]));
  const found = await extents(source);
  expect(found).toHaveLength(4000);
  expect(found.filter(({ state }) => state === "data")).toHaveLength(2000);
});

test("a sparse 16 TiB qcow2 with a bitmap", async () => {
  const image = await qcow2("16T");
  await run("qemu-img", ["bitmap", "--add", "-g", "1M", image, "b0"]);
  await qemuIo(image, "write -P 5 15T 64k");
  const source = await open(await qemuNbd(["-f", "qcow2", "-B", "b0", image]), { bitmap: "b0" });
  // Granularity is 1 MiB: the rest of the dirty part holds no data.
  expect(await extents(source)).toEqual([
    { offset: 0, length: 15 * TiB, state: "unchanged" },
    { offset: 15 * TiB, length: 64 * KiB, state: "data" },
    { offset: 15 * TiB + 64 * KiB, length: 960 * KiB, state: "zero" },
    { offset: 15 * TiB + MiB, length: TiB - MiB, state: "unchanged" },
  ]);
});

test("a raw image of odd size is exported in whole sectors, and read to its end", async () => {
  const image = join(await temporaryFolder(), "disk.raw");
  await writeFile(image, Buffer.alloc(100_001, 9));
  await truncate(image, 150_001);
  const source = await open(await qemuNbd(["-f", "raw", image]));
  expect(source.size).toBe(150_016);
  const into = Buffer.alloc(source.size, 0xee);
  await source.read(0, into, signal);
  expect(into.equals(Buffer.concat([Buffer.alloc(100_001, 9), Buffer.alloc(50_015)]))).toBe(true);
});

test("as many connections as qemu-nbd lets in", async () => {
  const image = await qcow2("8M", "write -P 1 0 8M");
  for (const shared of ["1", "2", "16"]) {
    const source = await open(await qemuNbd([`--shared=${shared}`, "-f", "qcow2", image]), {
      connections: 4,
    });
    const buffers = Array.from({ length: 32 }, () => Buffer.alloc(256 * KiB));
    await Promise.all(buffers.map((buffer, index) => source.read(index * 256 * KiB, buffer, signal)));
    expect(buffers.every((buffer) => buffer.every((byte) => byte === 1))).toBe(true);
    await source.close();
  }
});
