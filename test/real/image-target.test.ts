import { chmod, readdir, writeFile } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { afterEach, expect, test, vi } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { createImage } from "../../src/image/image-target.ts";
import { temporaryFolder } from "../support/folder.ts";
import { qemuImg } from "../support/exported-images.ts";

const never = new AbortController().signal;

afterEach(() => void vi.unstubAllEnvs());

/** A `qemu-nbd` before the real one on the path: what `python` does first, with `real`, `args` and `socket` at hand. */
async function behind(python: string): Promise<void> {
  const folder = await temporaryFolder();
  const script = `#!/usr/bin/python3
import os, shutil, signal, socket as sockets, subprocess, sys, time
args = sys.argv[1:]
socket = args[args.index("-k") + 1]
real = shutil.which("qemu-nbd", path=os.environ["PATH"].split("${delimiter}", 1)[1])
${python}
`;
  const path = join(folder, "qemu-nbd");
  await writeFile(path, script);
  await chmod(path, 0o755);
  vi.stubEnv("PATH", `${folder}${delimiter}${process.env["PATH"]!}`);
}

/** Makes an image by it, with a pattern, and reads that back by other means. */
async function makeOne(): Promise<string> {
  const folder = await temporaryFolder();
  const path = join(folder, "disk.qcow2");
  const image = await createImage("qcow2", path, MiB, { force: false }, never);
  try {
    await image.disk.write(65_536, Buffer.alloc(4096, 7), never);
    await image.finish(never);
  } finally {
    await image.close();
  }
  expect(await readdir(folder)).toEqual(["disk.qcow2"]);
  expect(await qemuImg("check", path)).toContain("No errors were found");
  return path;
}

test("a qemu-nbd that has its socket before it listens is waited for", async () => {
  await behind(`
early = sockets.socket(sockets.AF_UNIX)
early.bind(socket)
time.sleep(0.5)
os.unlink(socket)
os.execv(real, ["qemu-nbd"] + args)`);
  await makeOne();
});

test("one that misses the first signal to end gets another", async () => {
  await behind(`
child = subprocess.Popen([real] + args)
signals = 0
def on_term(number, frame):
    global signals
    signals += 1
    if signals > 1: child.terminate()
signal.signal(signal.SIGTERM, on_term)
sys.exit(child.wait())`);
  await makeOne();
});

test("one that dies before it serves: its own words, and nothing is left", async () => {
  await behind(`
sys.stderr.write("no room for me\\n")
sys.exit(3)`);
  const folder = await temporaryFolder();
  await expect(
    createImage("qcow2", join(folder, "disk.qcow2"), MiB, { force: false }, never),
  ).rejects.toMatchObject({
    kind: "source",
    code: "E_PROGRAM",
    message: expect.stringContaining("no room for me") as string,
  });
  expect(await readdir(folder)).toEqual([]);
});
