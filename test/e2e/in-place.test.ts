import { copyFile, open, readdir, readFile, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, expect, onTestFinished, test } from "vitest";
import { KiB, MiB } from "../../src/bytes/size.ts";
import { runCli } from "../support/cli.ts";
import { backUpQcow2, backUpRaw, nbdkit, qemuImg, qemuIo } from "../support/exported-images.ts";
import { temporaryFolder } from "../support/folder.ts";
import { compareFiles, type ImagePlan, makeImage } from "../support/images.ts";
import { attachLoop, loopDevicesWork } from "../support/loop-device.ts";
import { startQemuNbd } from "../support/qemu-nbd.ts";
import { directoryRepository, type TestRepository } from "../support/repositories.ts";

const CHUNK = 256 * KiB;
const SIZE = 12 * MiB + 7 * 512;

/** 4 MiB in the middle are a hole. */
const PLAN: ImagePlan = {
  size: SIZE,
  seed: 1,
  parts: [
    { kind: "random", length: 4 * MiB },
    { kind: "hole", length: 4 * MiB },
    { kind: "random", length: SIZE - 8 * MiB },
  ],
};

interface Restored {
  readonly stats: {
    readonly bytesRead: number;
    readonly bytesVouched: number;
    readonly bytesFetched: number;
    readonly chunksFetched: number;
    readonly bytesWritten: number;
    readonly bytesZero: number;
  };
}

let repository: TestRepository;
let folder: string;
let image: string;

beforeEach(async () => {
  repository = await directoryRepository();
  folder = await temporaryFolder();
  image = join(folder, "web.raw");
  await makeImage(image, PLAN);
  await backUpRaw(repository, image);
});

/** Three chunks of data that differ, the last short one among them, and one of zeros. */
async function spoil(path: string): Promise<void> {
  const file = await open(path, "r+");
  for (const at of [10, 3 * CHUNK - 1, 6 * MiB, SIZE - 1]) await file.write(Buffer.from([0x5a]), 0, 1, at);
  await file.close();
}

function inPlace(target: string, ...flags: string[]): Promise<Restored> {
  return repository.json<Restored>("restore", "web", "--to", target, "--in-place", ...flags);
}

test("a raw file: what differs is put right, and once more there is nothing to do", async () => {
  const target = join(folder, "target.raw");
  await copyFile(image, target);
  await spoil(target);
  const { ino } = await stat(target);
  const first = await inPlace(target);
  expect(await compareFiles(target, image)).toBeUndefined();
  expect(first.stats).toMatchObject({ bytesRead: SIZE, chunksFetched: 3, bytesZero: CHUNK });
  const text = await repository.run("restore", "web", "--to", target, "--in-place");
  expect(text).toMatchObject({ code: 0, stderr: "" });
  expect(text.stdout).toMatch(/^Restored web of .* in place on .* 12\.0 MiB read, 0 B fetched, 0 B written/);
  expect((await stat(target)).ino).toBe(ino);
  expect((await readdir(folder)).sort()).toEqual(["target.raw", "web.raw"]);
});

test("a file of another size, none at all, or qcow2: refused, and left alone", async () => {
  const target = join(folder, "target.raw");
  await copyFile(image, target);
  await truncate(target, SIZE - 512);
  const refused = await repository.run("restore", "web", "--to", target, "--in-place");
  expect(refused).toMatchObject({ code: 2 });
  expect(refused.stderr).toContain(`has ${SIZE - 512} bytes and the disk ${SIZE}`);
  expect((await stat(target)).size).toBe(SIZE - 512);
  const missing = join(folder, "missing.raw");
  expect(await repository.run("restore", "web", "--to", missing, "--in-place")).toMatchObject({ code: 10 });
  const others = [
    ["--to", `qcow2:${target}`, "--in-place"],
    ["--to", target, "--in-place", "--bitmap", "b0"],
    ["--to", target, "--bitmap", "b0"],
  ];
  for (const flags of others)
    expect(await repository.run("restore", "web", ...flags)).toMatchObject({ code: 2 });
  expect((await readdir(folder)).sort()).toEqual(["target.raw", "web.raw"]);
});

test("qemu-nbd that takes one client only: reads and writes share its connection", async () => {
  const target = join(folder, "target.raw");
  await makeImage(target, PLAN); // a copy would have no hole
  await spoil(target);
  const server = await startQemuNbd(["--format=raw", "--shared=1", target], { exportName: "target" });
  onTestFinished(() => server.stop());
  const { stats } = await inPlace(server.uri);
  await server.stop();
  expect(await compareFiles(target, image)).toBeUndefined();
  expect(stats).toMatchObject({ chunksFetched: 3, bytesZero: CHUNK });
  expect(stats.bytesRead).toBeLessThan(SIZE); // the hole is known without a read
});

test("nbdkit without WRITE_ZEROES, and a larger export: what lies behind the disk stays", async () => {
  const target = join(folder, "target.raw");
  await writeFile(target, Buffer.alloc(SIZE + MiB, 0xaa));
  const server = await nbdkit(["--filter=nozero", "file", target, "zeromode=none"]);
  await inPlace(server.uri);
  const bytes = await readFile(target);
  expect(bytes.subarray(0, SIZE).equals(await readFile(image))).toBe(true);
  expect(bytes.subarray(SIZE).every((byte) => byte === 0xaa)).toBe(true);
});

test("a read-only or smaller export is refused", async () => {
  const readOnly = await nbdkit(["--readonly", "memory", "16M"]);
  expect(await repository.run("restore", "web", "--to", readOnly.uri, "--in-place")).toMatchObject({
    code: 2,
  });
  const small = await nbdkit(["memory", "4M"]);
  expect(await repository.run("restore", "web", "--to", small.uri, "--in-place")).toMatchObject({ code: 2 });
});

test("--bitmap: only what was written since the generation is compared, and a bitmap that is not there is named", async () => {
  const qcow2 = join(folder, "vm.qcow2");
  const truth = join(folder, "truth.raw");
  await qemuImg("create", "-q", "-f", "qcow2", qcow2, "16M");
  await qemuIo("qcow2", qcow2, "write -P 1 0 3M", "write -P 2 6M 4M");
  await qemuImg("bitmap", "--add", "-g", "64k", qcow2, "since");
  const { generation } = await backUpQcow2(repository, qcow2);
  await qemuImg("convert", "-O", "raw", qcow2, truth);
  await qemuIo("qcow2", qcow2, "write -P 7 1M 64k", "write -P 8 5M 64k", "write -z 7M 1M", "discard 15M 64k");
  const server = await startQemuNbd(["--format=qcow2", "--bitmap=since", qcow2], { exportName: "vm" });
  onTestFinished(() => server.stop());
  const flags = ["restore", generation, "--to", server.uri, "--in-place", "--bitmap"];
  const { stats } = await repository.json<Restored>(...flags, "since");
  const wrong = await repository.run(...flags, "other");
  await server.stop();
  await qemuImg("compare", "-q", "-f", "qcow2", "-F", "raw", qcow2, truth);
  expect(stats.bytesVouched).toBe(16 * MiB - 7 * CHUNK); // 1, 1, 4 and 1 chunks are dirty
  expect(stats.bytesWritten).toBe(5 * CHUNK);
  expect(wrong).toMatchObject({ code: 10 });
  expect(wrong.stderr).toContain('offers no bitmap "other" but since');
});

test("a run that is killed half-way: the next one completes it", async () => {
  const target = join(folder, "target.raw");
  await writeFile(target, Buffer.alloc(SIZE, 0xee));
  const server = await nbdkit([
    ...["--filter=noparallel", "--filter=delay", "file", target],
    ...["serialize=all-requests", "delay-write=200ms"],
  ]);
  const { mtimeMs } = await stat(target);
  const killed = await runCli(["restore", "web", "--to", server.uri, "--in-place"], {
    env: repository.env,
    started: (child) => {
      const timer = setInterval(() => {
        void stat(target).then((now) => now.mtimeMs !== mtimeMs && child.kill("SIGKILL"));
      }, 20);
      child.on("exit", () => clearInterval(timer));
    },
  });
  expect(killed.signal).toBe("SIGKILL");
  expect(await compareFiles(target, image)).toBeDefined();
  await inPlace(target);
  expect(await compareFiles(target, image)).toBeUndefined();
});

if (loopDevicesWork()) {
  test("a block device: only with --force, and what lies behind the disk stays", async () => {
    const raw = join(folder, "device.raw");
    await copyFile(image, raw);
    await spoil(raw);
    await truncate(raw, 13 * MiB);
    const device = attachLoop(raw);
    expect(await repository.run("restore", "web", "--to", device, "--in-place")).toMatchObject({ code: 2 });
    const { stats } = await inPlace(device, "--force");
    expect(stats).toMatchObject({ chunksFetched: 3, bytesZero: CHUNK });
    const bytes = await readFile(raw);
    expect(bytes.subarray(0, SIZE).equals(await readFile(image))).toBe(true);
  });
}
