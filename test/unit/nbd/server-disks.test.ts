import { stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { AppError, type ErrorKind } from "../../../src/errors.ts";
import { Errno } from "../../../src/nbd/constants.ts";
import { failureOf } from "../../../src/nbd/server/errno.ts";
import { serveRawFile, type ServedRawFile } from "../../../src/nbd/server/raw-disk.ts";
import { testFolder } from "../../support/serve.ts";

const signal = new AbortController().signal;

describe("what a disk throws becomes an NBD error", () => {
  test.each<[ErrorKind, number]>([
    ["full", Errno.ENOSPC],
    ["credentials", Errno.EPERM],
    ["cancelled", Errno.ESHUTDOWN],
    ["corrupt", Errno.EIO],
    ["unavailable", Errno.EIO],
    ["bug", Errno.EIO],
  ])("kind %s: %i", (kind, errno) => {
    const error = new AppError(kind, "E_TEST", "It is so");
    expect(failureOf(error)).toEqual({ errno, message: "It is so" });
  });

  test.each([
    ["ENOSPC", Errno.ENOSPC],
    ["EDQUOT", Errno.ENOSPC],
    ["EFBIG", Errno.ENOSPC],
    ["EACCES", Errno.EPERM],
    ["EROFS", Errno.EPERM],
    ["EPERM", Errno.EPERM],
    ["ENOMEM", Errno.ENOMEM],
    ["EBADF", Errno.EIO],
  ])("system error %s: %i", (code, errno) => {
    expect(failureOf(Object.assign(new Error("so"), { code }))).toEqual({ errno, message: "so" });
  });

  test("anything else: EIO", () => {
    expect(failureOf("a string")).toEqual({ errno: Errno.EIO, message: "a string" });
  });
});

describe("a served raw file", () => {
  const MiB = 1024 * 1024;

  async function sparseFile(size: number): Promise<{ path: string; disk: ServedRawFile }> {
    const path = join(await testFolder(), "disk.raw");
    await writeFile(path, "");
    await truncate(path, size);
    const disk = await serveRawFile(path, { writable: true, dirtyBitmap: "b" });
    onTestFinished(() => disk.close());
    return { path, disk };
  }

  test("keeps holes when zeroed, unless space is to be there", async () => {
    const { path, disk } = await sparseFile(4 * MiB);
    await disk.zero!(0, 4 * MiB, true, signal);
    await disk.flush!(signal);
    expect((await stat(path)).blocks).toBe(0);
    await disk.zero!(MiB, 2 * MiB, false, signal);
    await disk.flush!(signal);
    expect((await stat(path)).blocks * 512).toBeGreaterThanOrEqual(2 * MiB);
  });

  test("counts zeroed places as dirty, holes or not, and a write that failed", async () => {
    const { disk } = await sparseFile(4 * MiB);
    await disk.zero!(MiB, 10, true, signal);
    await expect(
      disk.write!(3 * MiB, Buffer.alloc(10), AbortSignal.abort(new Error("stop"))),
    ).rejects.toThrow("stop");
    const dirty: number[] = [];
    for await (const extent of disk.dirty!.extents({ offset: 0, length: 4 * MiB }, signal)) {
      if (extent.dirty) dirty.push(extent.offset, extent.length);
    }
    expect(dirty).toEqual([MiB, 65_536, 3 * MiB, 65_536]);
  });
});
