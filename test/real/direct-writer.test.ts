import { constants } from "node:fs";
import { mkdtemp, open, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { KiB } from "../../src/bytes/size.ts";
import { pageAligned, pageAlignedShared } from "../../src/bytes/page-aligned.ts";
import { DirectWriter } from "../../src/disk/direct-writer.ts";

const signal = new AbortController().signal;

/** An empty file below `parent`, and a writer for it. */
async function emptyFile(parent: string): Promise<{ path: string; writer: DirectWriter }> {
  const folder = await mkdtemp(join(parent, "blockhaul-direct-"));
  const path = join(folder, "file");
  await writeFile(path, "");
  const writer = new DirectWriter(path);
  onTestFinished(async () => {
    await writer.close();
    await rm(folder, { recursive: true });
  });
  return { path, writer };
}

/** Whether the file system under `parent` takes O_DIRECT at all. */
async function takesDirect(parent: string): Promise<boolean> {
  const { path } = await emptyFile(parent);
  return await open(path, constants.O_WRONLY | constants.O_DIRECT).then(
    async (file) => (await file.close(), true),
    () => false,
  );
}

test.each([
  ["memory of one thread", pageAligned],
  ["memory that threads share", pageAlignedShared],
])("writes whole blocks of %s and leaves the tail", async (_, make) => {
  const { path, writer } = await emptyFile(tmpdir());
  const bytes = make(20 * KiB + 17);
  for (let at = 0; at < bytes.length; at++) bytes[at] = at % 251;
  const done = await writer.write(bytes, 8 * KiB, signal);
  const direct = await takesDirect(tmpdir());
  expect(done).toBe(direct ? 20 * KiB : 0);
  const found = await readFile(path);
  expect(found.length).toBe(direct ? 28 * KiB : 0);
  expect(found.subarray(8 * KiB).equals(bytes.subarray(0, done))).toBe(true);
});

test("leaves what does not begin on a block, and says so for memory that does not begin on a page", async () => {
  const { path, writer } = await emptyFile(tmpdir());
  const bytes = pageAligned(16 * KiB).fill(7);
  expect(await writer.write(bytes, 512, signal)).toBe(0);
  expect(await writer.write(bytes.subarray(1, 1 + 8 * KiB), 0, signal)).toBe(0);
  expect(await readFile(path)).toEqual(Buffer.alloc(0));
});

test("leaves everything where the file system has no such writes", async () => {
  const { path, writer } = await emptyFile("/dev/shm");
  const bytes = pageAligned(8 * KiB).fill(7);
  const done = await writer.write(bytes, 0, signal);
  expect(done).toBe((await takesDirect("/dev/shm")) ? 8 * KiB : 0);
  expect((await readFile(path)).length).toBe(done);
});

test("a file that is not there is an error, and closing afterwards is not", async () => {
  const writer = new DirectWriter("/nowhere/at/all");
  await expect(writer.write(pageAligned(4 * KiB), 0, signal)).rejects.toThrow("ENOENT");
  await writer.close();
  await writer.close();
});

test("an aborted signal stops it before anything is written", async () => {
  const { path, writer } = await emptyFile(tmpdir());
  const reason = new Error("stop");
  await expect(writer.write(pageAligned(4 * KiB), 0, AbortSignal.abort(reason))).rejects.toBe(reason);
  expect(await readFile(path)).toEqual(Buffer.alloc(0));
});
