import { readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { GiB, KiB, MiB, TiB } from "../../src/bytes/size.ts";
import { openNbdSource } from "../../src/nbd/source.ts";
import { openNbdTarget, type NbdTarget, type NbdTargetOptions } from "../../src/nbd/target.ts";
import { parseNbdUri } from "../../src/nbd/uri.ts";
import { temporaryFolder } from "../support/folder.ts";
import type { NbdProcess } from "../support/nbd-process.ts";
import { startNbdkit } from "../support/nbdkit.ts";
import { startQemuNbd } from "../support/qemu-nbd.ts";

const { signal } = new AbortController();

async function open(server: NbdProcess, options: NbdTargetOptions = {}): Promise<NbdTarget> {
  onTestFinished(() => server.stop());
  const target = await openNbdTarget(parseNbdUri(server.uri), options, signal);
  onTestFinished(() => target.close());
  return target;
}

/** Writes and zeroes all over the disk, many at once, into the model too. */
async function scribble(target: NbdTarget, model: Buffer): Promise<void> {
  const steps = Array.from({ length: 200 }, (_, index) => {
    const offset = Math.floor((index * model.length) / 200);
    return { offset, length: Math.floor(((index + 1) * model.length) / 200) - offset, index };
  });
  await Promise.all(
    steps.map(async ({ offset, length, index }) => {
      if (index % 3 === 0) return;
      if (index % 3 === 1) {
        model.fill(0, offset, offset + length);
        await target.zero(offset, length, signal);
        return;
      }
      const bytes = new Uint8Array(new SharedArrayBuffer(length)).fill(index);
      model.set(bytes, offset);
      await target.write(offset, bytes, signal);
    }),
  );
  await target.flush(signal);
}

const SERVERS: [string, (image: string) => Promise<NbdProcess>][] = [
  ["qemu-nbd", (image) => startQemuNbd(["-f", "raw", "--discard=unmap", image])],
  ["nbdkit", (image) => startNbdkit(["file", image])],
  ["nbdkit without structured replies", (image) => startNbdkit(["--no-sr", "file", image])],
  [
    "nbdkit without WRITE_ZEROES",
    (image) => startNbdkit(["--filter=nozero", "file", image, "zeromode=none"]),
  ],
  [
    "nbdkit that insists on its block sizes",
    (image) =>
      startNbdkit([
        ...["--filter=blocksize-policy", "file", image, "blocksize-error-policy=error"],
        ...["blocksize-minimum=4096", "blocksize-preferred=65536", "blocksize-maximum=131072"],
      ]),
  ],
];

test.each(SERVERS)("%s holds exactly what was written, and zeros where zeroed", async (_what, start) => {
  const image = join(await temporaryFolder(), "disk.raw");
  const model = Buffer.alloc(8 * MiB, 0x55);
  await writeFile(image, model);
  const target = await open(await start(image));
  expect([target.size, target.zeroed]).toEqual([8 * MiB, false]);
  await scribble(target, model);
  await target.close();
  expect((await readFile(image)).equals(model)).toBe(true);
});

test("zeros deallocate where the server can, and 4 TiB of them take no time", async () => {
  const image = join(await temporaryFolder(), "disk.raw");
  await writeFile(image, Buffer.alloc(4 * MiB, 1));
  const target = await open(await startQemuNbd(["-f", "raw", "--discard=unmap", image]));
  await target.zero(0, 4 * MiB, signal);
  await target.flush(signal);
  expect((await stat(image)).blocks).toBeLessThan(64);
  const huge = await open(await startNbdkit(["memory", "size=4T"]));
  await huge.write(3 * TiB, Buffer.from("x"), signal);
  await huge.zero(0, 4 * TiB, signal);
  await huge.trim(1, 3 * GiB, signal);
  await huge.flush(signal);
});

test("writes longer than the server's maximum are cut", async () => {
  const server = await startNbdkit(["memory", "size=100M"]);
  const target = await open(server, { fua: true });
  const bytes = Buffer.alloc(70 * MiB, 3);
  await target.write(5, bytes, signal);
  const source = await openNbdSource(parseNbdUri(server.uri), {}, signal);
  onTestFinished(() => source.close());
  const into = Buffer.alloc(70 * MiB);
  await source.read(5, into, signal);
  expect(into.equals(bytes)).toBe(true);
});

test("a read-only export is refused before anything is written", async () => {
  const opening = open(await startNbdkit(["-r", "memory", "size=1M"]));
  await expect(opening).rejects.toMatchObject({ kind: "usage", code: "E_NBD_READ_ONLY" });
});

test("a server without space, or that fails to write, is told by errno", async () => {
  const full = await open(await startNbdkit(["full", "size=1M"]));
  await expect(full.write(0, Buffer.alloc(64 * KiB, 1), signal)).rejects.toMatchObject({
    kind: "source",
    code: "E_NBD_WRITE",
    context: { errno: "ENOSPC", offset: 0, length: 65_536 },
  });
  const broken = await open(
    await startNbdkit(["--filter=error", "memory", "size=1M", "error-zero=EPERM", "error-zero-rate=100%"]),
  );
  await expect(broken.zero(0, 64 * KiB, signal)).rejects.toMatchObject({ code: "E_NBD_ZERO" });
  await broken.write(0, Buffer.alloc(10), signal);
});
