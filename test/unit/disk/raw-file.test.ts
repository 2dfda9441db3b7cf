import { execFileSync } from "node:child_process";
import {
  chmod,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  truncate,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { openRawFile, openRawSource } from "../../../src/disk/raw-file.ts";
import { createRawFile, openExistingTarget, type RawFileTarget } from "../../../src/disk/raw-target.ts";

const signal = new AbortController().signal;
let dir: string;

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "raw-file-"));
  return (): Promise<void> => rm(dir, { recursive: true });
});

function pattern(length: number, seed = 1): Buffer {
  return Buffer.from(Uint8Array.from({ length }, (_, index) => (index * 31 + seed * 7) % 251));
}

/** A file as a block device; taken away after the test. */
function attachLoop(file: string): string {
  const device = execFileSync("losetup", ["-f", "--show", file], { encoding: "utf8" }).trim();
  onTestFinished(() => {
    execFileSync("losetup", ["-d", device]);
  });
  return device;
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

const isZero = (bytes: Buffer): boolean => bytes.equals(Buffer.alloc(bytes.length));

function closing<T extends { close(): Promise<void> }>(disk: T): T {
  onTestFinished(() => disk.close());
  return disk;
}

describe("source", () => {
  test("reads any range and says data everywhere", async () => {
    const path = join(dir, "disk");
    await writeFile(path, pattern(10_001));
    const source = closing(await openRawSource(path, signal));
    expect(source.size).toBe(10_001);
    const into = new Uint8Array(new SharedArrayBuffer(1001));
    await source.read(9000, into, signal);
    expect(Buffer.from(into)).toEqual(pattern(10_001).subarray(9000));
    const extents = await collect(source.extents({ offset: 5, length: 100 }, signal));
    expect(extents).toEqual([{ offset: 5, length: 100, state: "data" }]);
    expect(await collect(source.extents({ offset: 10_001, length: 0 }, signal))).toEqual([]);
  });

  test("an empty file is a disk of 0 bytes", async () => {
    await writeFile(join(dir, "disk"), "");
    const source = closing(await openRawSource(join(dir, "disk"), signal));
    expect(source.size).toBe(0);
    await source.read(0, new Uint8Array(0), signal);
  });

  test("a file that became shorter is a read error with its place, not zeros", async () => {
    const path = join(dir, "disk");
    await writeFile(path, pattern(8192));
    const source = closing(await openRawSource(path, signal));
    await truncate(path, 5000);
    await expect(source.read(4096, new Uint8Array(4096), signal)).rejects.toMatchObject({
      kind: "source",
      code: "E_DISK_READ",
      message: expect.stringContaining(`3192 bytes at 5000 of ${path}: the file ends there`) as string,
    });
  });

  test("an aborted call ends with the signal's reason", async () => {
    await writeFile(join(dir, "disk"), pattern(100));
    const source = closing(await openRawSource(join(dir, "disk"), signal));
    const reason = new Error("stop");
    await expect(source.read(0, new Uint8Array(10), AbortSignal.abort(reason))).rejects.toBe(reason);
    await expect(openRawSource(join(dir, "disk"), AbortSignal.abort(reason))).rejects.toBe(reason);
  });

  test("what cannot be opened says why", async () => {
    await expect(openRawSource(join(dir, "none"), signal)).rejects.toMatchObject({ code: "E_DISK_MISSING" });
    await expect(openRawSource(dir, signal)).rejects.toMatchObject({ kind: "usage", code: "E_DISK_KIND" });
  });

  test.each([1_000_448, 512, 3 * 1024 * 1024])(
    "a block device of %i bytes has its real size",
    async (size) => {
      const path = join(dir, "disk");
      await writeFile(path, pattern(size));
      const source = closing(await openRawSource(attachLoop(path), signal));
      expect(source.size).toBe(size);
      const into = Buffer.alloc(100);
      await source.read(size - 100, into, signal);
      expect(into).toEqual(pattern(size).subarray(-100));
    },
  );
});

describe("new file", () => {
  const create = async (path: string, size: number, force = false): Promise<RawFileTarget> =>
    closing(await createRawFile(path, size, { force }, signal));

  test("appears under its name only when committed, sparse and exact", async () => {
    const path = join(dir, "disk");
    const size = 8 * 1024 * 1024 + 3;
    const target = await create(path, size);
    expect(target).toMatchObject({ size, zeroed: true, name: path });
    await target.write(size - 5, pattern(5), signal);
    await target.zero(0, size - 5, signal);
    await target.flush(signal);
    await expect(stat(path)).rejects.toThrow("ENOENT");
    await target.commit(signal);
    await target.close();
    const restored = await readFile(path);
    expect(restored.length).toBe(size);
    expect(restored.subarray(-5)).toEqual(pattern(5));
    expect(isZero(restored.subarray(0, -5))).toBe(true);
    expect((await stat(path)).blocks * 512).toBeLessThan(1024 * 1024);
    expect(await readdir(dir)).toEqual(["disk"]);
  });

  test("zeros win over what was written before", async () => {
    const path = join(dir, "disk");
    const target = await create(path, 3_000_000);
    await target.write(1_048_000, pattern(2000), signal);
    await target.zero(1_048_500, 1_000_000, signal);
    await target.commit(signal);
    const restored = await readFile(path);
    expect(restored.subarray(1_048_000, 1_048_500)).toEqual(pattern(2000).subarray(0, 500));
    expect(isZero(restored.subarray(1_048_500))).toBe(true);
  });

  test("leaves nothing behind without commit", async () => {
    const target = await create(join(dir, "disk"), 100);
    await target.write(0, pattern(100), signal);
    await target.close();
    await target.close();
    expect(await readdir(dir)).toEqual([]);
  });

  test("never takes the place of a file, neither an old one nor one that came meanwhile", async () => {
    const path = join(dir, "disk");
    const target = await create(path, 10);
    await writeFile(path, "theirs");
    await expect(target.commit(signal)).rejects.toMatchObject({ kind: "usage", code: "E_TARGET_EXISTS" });
    await expect(create(path, 10)).rejects.toMatchObject({ kind: "usage", code: "E_TARGET_EXISTS" });
    await target.close();
    expect(await readFile(path, "utf8")).toBe("theirs");
    expect(await readdir(dir)).toEqual(["disk"]);
  });

  test("with force replaces the file at commit, through a link, with the old mode", async () => {
    const path = join(dir, "disk");
    await writeFile(path, "old");
    await chmod(path, 0o640);
    await symlink(path, join(dir, "link"));
    const target = await create(join(dir, "link"), 4, true);
    await target.write(0, Buffer.from("new!"), signal);
    expect(await readFile(path, "utf8")).toBe("old");
    await target.commit(signal);
    expect(await readFile(path, "utf8")).toBe("new!");
    expect((await stat(path)).mode & 0o777).toBe(0o640);
    expect((await readdir(dir)).sort()).toEqual(["disk", "link"]);
  });

  test("is private until then", async () => {
    await create(join(dir, "disk"), 4);
    const [partial] = await readdir(dir);
    expect((await stat(join(dir, partial!))).mode & 0o777).toBe(0o600);
  });

  test("refuses what is not a file, force or not, and a folder that is missing", async () => {
    await expect(create(dir, 4, true)).rejects.toMatchObject({ kind: "usage", code: "E_DISK_KIND" });
    await expect(create(join(dir, "none/disk"), 4)).rejects.toMatchObject({
      kind: "notFound",
      message: `There is no ${join(dir, "none")}`,
    });
    await writeFile(join(dir, "file"), pattern(1024));
    const device = attachLoop(join(dir, "file"));
    await expect(create(device, 4, true)).rejects.toMatchObject({ kind: "usage", code: "E_DISK_KIND" });
  });

  test("refuses writes past its end", async () => {
    const target = await create(join(dir, "disk"), 100);
    await expect(target.write(99, pattern(2), signal)).rejects.toMatchObject({ code: "E_TARGET_RANGE" });
    await expect(target.zero(101, 0, signal)).rejects.toMatchObject({ code: "E_TARGET_RANGE" });
  });
});

describe("existing target", () => {
  const openTarget = async (path: string, size: number): Promise<RawFileTarget> =>
    closing(await openExistingTarget(path, size, signal));

  test.each([
    { was: 3_000_000, title: "a longer file is cut when all is written" },
    { was: 1000, title: "a shorter file grows" },
    { was: 2_500_000, title: "a file of the same size stays so" },
  ])("$title", async ({ was }) => {
    const path = join(dir, "disk");
    await writeFile(path, pattern(was, 9));
    const target = await openTarget(path, 2_500_000);
    expect(target.zeroed).toBe(false);
    expect((await stat(path)).size).toBe(Math.max(was, 2_500_000));
    await target.write(0, pattern(1000), signal);
    await target.zero(1000, 2_499_000, signal);
    await target.commit(signal);
    expect((await readFile(path)).equals(Buffer.concat([pattern(1000), Buffer.alloc(2_499_000)]))).toBe(true);
  });

  test("a place that reads as zeros is not written, so a sparse file stays sparse", async () => {
    const path = join(dir, "disk");
    await writeFile(path, "");
    await truncate(path, 50_000_000);
    const target = await openTarget(path, 50_000_000);
    await target.zero(0, 50_000_000, signal);
    await target.commit(signal);
    expect((await stat(path)).blocks).toBe(0);
  });

  test("a larger device keeps what lies behind the disk", async () => {
    const path = join(dir, "disk");
    await writeFile(path, pattern(1024 * 1024));
    const target = await openTarget(attachLoop(path), 500_000);
    await target.zero(0, 500_000, signal);
    await target.commit(signal);
    await target.close();
    const after = await readFile(path);
    expect(isZero(after.subarray(0, 500_000))).toBe(true);
    expect(after.subarray(500_000)).toEqual(pattern(1024 * 1024).subarray(500_000));
  });

  test("a smaller device is refused with both sizes and not touched", async () => {
    const path = join(dir, "disk");
    await writeFile(path, pattern(1024));
    await expect(openTarget(attachLoop(path), 1025)).rejects.toMatchObject({
      kind: "usage",
      code: "E_TARGET_SIZE",
      message: expect.stringMatching(/has 1024 bytes and the disk 1025/) as string,
    });
    expect(await readFile(path)).toEqual(pattern(1024));
  });

  test("a device that somebody claimed is refused", async () => {
    const path = join(dir, "disk");
    await writeFile(path, pattern(1024));
    const device = attachLoop(path);
    const first = await openRawFile(device, "write");
    onTestFinished(() => first.close());
    await expect(openTarget(device, 100)).rejects.toMatchObject({ kind: "locked", code: "E_DISK_BUSY" });
  });

  test("a missing file is not created", async () => {
    await expect(openTarget(join(dir, "none"), 1)).rejects.toMatchObject({ code: "E_DISK_MISSING" });
  });
});

test("no space left is an error of its own kind, and the new file goes", async () => {
  const small = join(dir, "small");
  await mkdir(small);
  execFileSync("mount", ["-t", "tmpfs", "-o", "size=256k", "none", small]);
  try {
    const target = await createRawFile(join(small, "disk"), 10_000_000, { force: false }, signal);
    const write = target.write(0, pattern(600_000), signal);
    await expect(write).rejects.toMatchObject({ kind: "full", code: "E_TARGET_FULL" });
    await target.close();
    expect(await readdir(small)).toEqual([]);
  } finally {
    execFileSync("umount", [small]);
  }
});
