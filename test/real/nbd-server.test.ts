import { randomBytes } from "node:crypto";
import { readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import type { ServedDisk } from "../../src/nbd/server/served-disk.ts";
import { serveRawFile, type ServedRawFile } from "../../src/nbd/server/raw-disk.ts";
import { NbdServer } from "../../src/nbd/server/server.ts";
import { MemoryDisk, patterned } from "../support/memory-disk.ts";
import { output, run, serve, testFolder } from "../support/serve.ts";

/** Our server before other people's clients: libnbd's tools and QEMU's. */

const MiB = 1024 * 1024;

async function rawFile(content: Buffer, writable = true): Promise<{ path: string; disk: ServedRawFile }> {
  const path = join(await testFolder(), "disk.raw");
  await writeFile(path, content);
  const disk = await serveRawFile(path, { writable, dirtyBitmap: "bitmap0" });
  onTestFinished(() => disk.close());
  return { path, disk };
}

describe("nbdinfo", () => {
  test("shows what an export is and can do", async () => {
    const zeros = [{ offset: 65_536, length: 131_072 }];
    const disk = new MemoryDisk(patterned(1_000_448), {
      zeros,
      dirty: [{ offset: 0, length: 65_536 }],
      description: "a disk for tests",
      blockSize: { minimum: 512, preferred: 65_536, maximum: 2 * MiB },
    });
    const { server } = await serve({ "möbius 1": disk });
    const info = JSON.parse(await output("nbdinfo", "--json", server.uri("möbius 1"))) as {
      exports: Record<string, unknown>[];
    };
    expect(info).toMatchObject({ protocol: "newstyle-fixed", TLS: false, structured: true });
    expect(info.exports[0]).toMatchObject({
      "export-name": "möbius 1",
      description: "a disk for tests",
      "export-size": 1_000_448,
      contexts: ["base:allocation", "qemu:dirty-bitmap:bitmap0"],
      is_read_only: false,
      can_df: true,
      can_fast_zero: false,
      can_flush: true,
      can_fua: true,
      can_multi_conn: true,
      can_trim: true,
      can_zero: true,
      block_size_minimum: 512,
      block_size_preferred: 65_536,
      block_size_maximum: 2 * MiB,
    });
  });

  test("shows a read-only export without what it cannot do", async () => {
    const { server } = await serve({ "": new MemoryDisk(patterned(100), { readOnly: true }) });
    const info = JSON.parse(await output("nbdinfo", "--json", server.uri(""))) as { exports: unknown[] };
    expect(info.exports[0]).toMatchObject({
      contexts: ["base:allocation"],
      is_read_only: true,
      can_flush: false,
      can_trim: false,
      can_zero: false,
    });
  });

  test("lists all exports", async () => {
    const exports: Record<string, ServedDisk> = {};
    for (let index = 0; index < 20; index++) {
      exports[`disk ${index}`] = new MemoryDisk(patterned(index), { description: `number ${index}` });
    }
    const { server } = await serve(exports);
    const list = JSON.parse(await output("nbdinfo", "--list", "--json", server.uri(""))) as {
      exports: { "export-name": string; "export-size": number; description: string }[];
    };
    expect(
      list.exports.map((entry) => [entry["export-name"], entry["export-size"], entry.description]),
    ).toEqual(Object.entries(exports).map(([name, disk]) => [name, disk.size, disk.description]));
  });

  test("says when there is no such export", async () => {
    const { server } = await serve({ one: new MemoryDisk(patterned(1)), two: new MemoryDisk(patterned(1)) });
    const { code, stderr } = await run("nbdinfo", server.uri("three"));
    expect(code).toBe(1);
    expect(stderr).toContain("No such file or directory for export: three");
  });

  test("finds the only export as the default", async () => {
    const { server } = await serve({ only: new MemoryDisk(patterned(12_345)) });
    expect(await output("nbdinfo", "--size", server.uri(""))).toBe("12345\n");
  });

  test("maps both contexts, many extents and odd ends included", async () => {
    const size = 4_000_001;
    const every = (step: number, length: number): { offset: number; length: number }[] =>
      Array.from({ length: Math.floor(size / step) }, (_, index) => ({ offset: index * step + 7, length }));
    const [zeros, dirty] = [every(100, 30), every(70_000, 65_536)];
    const { server } = await serve({ disk: new MemoryDisk(Buffer.alloc(size), { zeros, dirty }) });
    const map = async (context: string): Promise<{ offset: number; length: number }[]> => {
      const text = await output("nbdinfo", "--json", `--map=${context}`, server.uri("disk"));
      const extents = JSON.parse(text) as { offset: number; length: number; type: number }[];
      expect(extents.reduce((end, extent) => (extent.offset === end ? end + extent.length : NaN), 0)).toBe(
        size,
      );
      return extents.filter(({ type }) => type !== 0).map(({ offset, length }) => ({ offset, length }));
    };
    expect(await map("base:allocation")).toEqual(zeros);
    expect(await map("qemu:dirty-bitmap:bitmap0")).toEqual(dirty);
  });
});

describe("nbdcopy", () => {
  test.each([1, 511, 65_536, 20 * MiB + 13])("reads %i bytes over several connections", async (size) => {
    const content = randomBytes(size);
    const { disk } = await rawFile(content, false);
    const { server } = await serve({ disk });
    const copy = join(await testFolder(), "copy");
    await output("nbdcopy", "--connections=4", server.uri("disk"), copy);
    expect((await readFile(copy)).equals(content)).toBe(true);
  });

  test("leaves out what is zero", async () => {
    const bytes = patterned(4 * MiB);
    const zeros = [{ offset: MiB - 512, length: 2 * MiB }];
    bytes.fill(0, zeros[0]!.offset, zeros[0]!.offset + zeros[0]!.length);
    const disk = new MemoryDisk(bytes, { zeros, readOnly: true });
    const { server } = await serve({ disk });
    const copy = join(await testFolder(), "copy");
    await output("nbdcopy", server.uri("disk"), copy);
    expect((await readFile(copy)).equals(bytes)).toBe(true);
    const read = disk.calls
      .map((call) => Number(call.split("+")[1]))
      .reduce((sum, length) => sum + length, 0);
    expect(read).toBeLessThanOrEqual(2 * MiB + 1024);
  });

  test("writes an image, holes as zeros over what was there", async () => {
    const content = Buffer.concat([randomBytes(3 * MiB + 5), Buffer.alloc(5 * MiB), randomBytes(MiB)]);
    const source = join(await testFolder(), "source");
    await writeFile(source, content.subarray(0, 3 * MiB + 5));
    await truncate(source, 8 * MiB + 5);
    await writeFile(source, content.subarray(8 * MiB + 5), { flag: "a" });
    const { path, disk } = await rawFile(Buffer.alloc(content.length, 0xee));
    const { server } = await serve({ disk });
    await output("nbdcopy", "--flush", source, server.uri("disk"));
    expect((await readFile(path)).equals(content)).toBe(true);
  });
});

describe("nbdsh", () => {
  const shell = async (server: NbdServer, ...lines: readonly string[]): Promise<string> => {
    const script = ["def fails(f):", "  try: f()", "  except nbd.Error as e: print(e.errno)", ...lines];
    // Requests that libnbd itself would refuse are to reach the server.
    const commands = ["h.set_strict_mode(0)", `h.connect_uri("${server.uri("disk")}")`, script.join("\n")];
    return await output("nbdsh", ...commands.flatMap((command) => ["-c", command]));
  };

  test("gets an error number for each thing that cannot be, on a connection that lives on", async () => {
    const blockSize = { minimum: 512, preferred: 4096, maximum: MiB };
    const { server } = await serve({ disk: new MemoryDisk(patterned(8 * MiB), { blockSize }) });
    const said = await shell(
      server,
      "fails(lambda: h.pread(512, 8 * 1024 * 1024))",
      "fails(lambda: h.pwrite(bytes(512), 8 * 1024 * 1024))",
      "fails(lambda: h.zero(512, 8 * 1024 * 1024))",
      "fails(lambda: h.trim(512, 8 * 1024 * 1024))",
      "fails(lambda: h.pread(100, 0))",
      "fails(lambda: h.pwrite(bytes(512), 7))",
      "fails(lambda: h.pread(2 * 1024 * 1024, 0))",
      "fails(lambda: h.pwrite(bytes(2 * 1024 * 1024), 0))",
      "fails(lambda: h.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO))",
      "fails(lambda: h.cache(512, 0))",
      "fails(lambda: h.block_status(512, 0, lambda *a: None))",
      "print(len(h.pread(512, 512)))",
    );
    const [inval, nospc] = ["EINVAL", "ENOSPC"];
    expect(said.trim().split("\n")).toEqual([
      inval, nospc, nospc, inval, inval, inval, "EOVERFLOW", inval, inval, inval, inval, "512",
    ]); // prettier-ignore
  });

  test("cannot write to a read-only export", async () => {
    const disk = new MemoryDisk(patterned(MiB), { readOnly: true });
    const { server } = await serve({ disk });
    const said = await shell(
      server,
      "fails(lambda: h.pwrite(bytes(512), 0))",
      "fails(lambda: h.zero(512, 0))",
      "fails(lambda: h.trim(512, 0))",
    );
    expect(said).toBe("EPERM\nEPERM\nEPERM\n");
    expect(disk.bytes.equals(patterned(MiB))).toBe(true);
  });

  test("gets FUA, DF, REQ_ONE and NO_HOLE", async () => {
    const zeros = [{ offset: 4096, length: 4096 }];
    const disk = new MemoryDisk(Buffer.alloc(16_384, 1), { zeros });
    disk.bytes.fill(0, 4096, 8192);
    const { server } = await serve({ disk });
    const said = await output(
      "nbdsh",
      ...["-c", 'h.add_meta_context("base:allocation")', "-c", `h.connect_uri("${server.uri("disk")}")`],
      ...["-c", "h.pwrite(bytes(4), 0, nbd.CMD_FLAG_FUA)", "-c", "h.zero(4, 8, nbd.CMD_FLAG_NO_HOLE)"],
      ...["-c", "h.trim(4, 8, nbd.CMD_FLAG_FUA)", "-c", "h.flush()"],
      ...["-c", "f = lambda b, o, s, e: print(s, o, len(b))"],
      ...["-c", "h.pread_structured(12288, 0, f)", "-c", "h.pread_structured(12288, 0, f, nbd.CMD_FLAG_DF)"],
      ...["-c", "g = lambda c, o, e, x: print(e)", "-c", "h.block_status(16384, 0, g)"],
      ...["-c", "h.block_status(3000, 2000, g, nbd.CMD_FLAG_REQ_ONE)"],
    );
    expect(disk.calls.slice(0, 6)).toEqual([
      "write 0+4",
      "flush",
      "zero 8+4",
      "zero 8+4 trim",
      "flush",
      "flush",
    ]);
    expect(said.trim().split("\n")).toEqual([
      "1 0 4096",
      "2 4096 4096",
      "1 8192 4096",
      "1 0 12288",
      "[4096, 0, 4096, 3, 8192, 0]",
      "[2096, 0]",
    ]);
  });

  test("works without structured replies", async () => {
    const bytes = patterned(100_000);
    const { server } = await serve({ disk: new MemoryDisk(bytes, { zeros: [{ offset: 10, length: 20 }] }) });
    const said = await output(
      "nbdsh",
      ...["-c", "h.set_request_structured_replies(False)", "-c", `h.connect_uri("${server.uri("disk")}")`],
      ...["-c", "print(h.get_structured_replies_negotiated(), h.can_df())"],
      ...["-c", "h.pwrite(b'abc', 99997)", "-c", "print(bytes(h.pread(6, 99994)).hex())"],
      ...["-c", "print(h.pread(99994, 0) == h.pread(99994, 0))"],
    );
    expect(said).toBe(`False False\n${bytes.subarray(99_994).toString("hex")}\nTrue\n`);
  });

  test("hears the disk's own words when a read fails, and reads on", async () => {
    const disk = new MemoryDisk(patterned(4096));
    const { server, errors } = await serve({ disk });
    disk.failure = Object.assign(new Error("the platter is scratched"), { code: "EIO" });
    const { stdout } = await run(
      "nbdsh",
      "--base-allocation",
      "-u",
      server.uri("disk"),
      "-c",
      "h.pread(1, 0)",
    );
    expect(stdout).toBe("");
    expect(errors).toContain(disk.failure);
    expect(await shell(server, "fails(lambda: h.pread(512, 0))", "fails(lambda: h.flush())")).toBe(
      "EIO\nEIO\n",
    );
    disk.failure = Object.assign(new Error("full"), { code: "EDQUOT" });
    expect(await shell(server, "fails(lambda: h.pwrite(bytes(512), 0))")).toBe("ENOSPC\n");
    disk.failure = undefined;
    expect(await shell(server, "print(len(h.pread(512, 0)))")).toBe("512\n");
  });
});

describe("QEMU's tools", () => {
  test("qemu-img reads: info, compare, convert", async () => {
    const content = Buffer.concat([randomBytes(2 * MiB), Buffer.alloc(3 * MiB)]);
    const { path, disk } = await rawFile(content);
    const { server } = await serve({ disk });
    const uri = server.uri("disk");
    const info = JSON.parse(await output("qemu-img", "info", "--output=json", uri)) as object;
    expect(info).toMatchObject({ "virtual-size": content.length, format: "raw" });
    await output("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, path);
    const copy = join(await testFolder(), "copy.raw");
    await output("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, copy);
    expect((await readFile(copy)).equals(content)).toBe(true);
  });

  test("qemu-img writes: convert into the export", async () => {
    const content = Buffer.concat([randomBytes(MiB), Buffer.alloc(MiB), randomBytes(MiB)]);
    const source = join(await testFolder(), "source.raw");
    await writeFile(source, content);
    const { path, disk } = await rawFile(Buffer.alloc(content.length, 0xee));
    const { server } = await serve({ disk });
    await output("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, server.uri("disk"));
    expect((await readFile(path)).equals(content)).toBe(true);
  });

  test("qemu-io writes, and the dirty bitmap says where", async () => {
    const { path, disk } = await rawFile(randomBytes(4 * MiB));
    const { server } = await serve({ disk });
    const commands = [
      "write -P 7 100k 1k",
      "write -z 1M 64k",
      "write -f -P 8 2M 70k",
      "discard 3M 4k",
      "flush",
    ];
    const io = async (list: readonly string[]): Promise<string> =>
      await output("qemu-io", "-f", "raw", ...list.flatMap((command) => ["-c", command]), server.uri("disk"));
    await io(commands);
    await io(["read -P 7 100k 1k", "read -P 0 1M 64k", "read -P 8 2M 70k"]);
    const map = async (): Promise<string> =>
      await output("nbdinfo", "--map=qemu:dirty-bitmap:bitmap0", server.uri("disk"));
    const dirty = (await map()).split("\n").filter((line) => line.includes("dirty"));
    expect(dirty.map((line) => line.trim().split(/ +/).slice(0, 2).map(Number))).toEqual([
      [65_536, 65_536],
      [MiB, 65_536],
      [2 * MiB, 131_072],
      [3 * MiB, 65_536],
    ]);
    expect((await readFile(path)).subarray(100 * 1024, 101 * 1024).equals(Buffer.alloc(1024, 7))).toBe(true);
    disk.forgetDirty();
    expect(await map()).toMatch(/^ +0 +4194304 +0 +clean\n$/);
  });

  test("over TCP, by a free port", async () => {
    const exports = new Map([["disk", new MemoryDisk(patterned(MiB))]]);
    const server = await NbdServer.listen(exports, { host: "127.0.0.1", port: 0 });
    onTestFinished(() => server.close());
    expect(server.uri("disk")).toMatch(/^nbd:\/\/127\.0\.0\.1:\d+\/disk$/);
    const info = JSON.parse(await output("qemu-img", "info", "--output=json", server.uri("disk"))) as object;
    expect(info).toMatchObject({ "virtual-size": MiB });
  });
});
