import { chmod, copyFile, readdir, readFile, stat, symlink, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, expect, onTestFinished, test } from "vitest";
import { KiB, MiB } from "../../src/bytes/size.ts";
import { backUpFile, backUpRaw, nbdkit, qemuImg } from "../support/exported-images.ts";
import { temporaryFolder } from "../support/folder.ts";
import { compareFiles, makeImage } from "../support/images.ts";
import { attachLoop, loopDevicesWork } from "../support/loop-device.ts";
import { startQemuNbd } from "../support/qemu-nbd.ts";
import { directoryRepository, type TestRepository } from "../support/repositories.ts";

const SIZE = 12 * MiB;

let repository: TestRepository;
let folder: string;
let image: string;

beforeEach(async () => {
  repository = await directoryRepository();
  folder = await temporaryFolder();
  image = join(folder, "web.raw");
  await makeImage(image, {
    size: SIZE,
    seed: 1,
    parts: [
      { kind: "random", length: 2 * MiB + 8 * KiB },
      { kind: "hole", length: 5 * MiB },
      { kind: "text", length: 3 * MiB },
    ],
  });
});

/** A file without a zero in it. */
async function garbage(name: string, size: number): Promise<string> {
  const file = join(folder, name);
  await writeFile(file, Buffer.alloc(size, 0xaa));
  return file;
}

/** The first bytes must be the image's, and all behind them untouched garbage. */
async function expectOverGarbage(file: string): Promise<void> {
  const bytes = await readFile(file);
  expect(bytes.subarray(0, SIZE).equals(await readFile(image))).toBe(true);
  expect(bytes.subarray(SIZE).every((byte) => byte === 0xaa)).toBe(true);
}

test("a new raw file is sparse, and nothing else is left beside it", async () => {
  await backUpRaw(repository, image);
  const target = join(folder, "restored.raw");
  const { code, stdout, stderr } = await repository.run("restore", "web", "--to", target);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  expect(stdout).toMatch(/^Restored web of .* every byte verified/);
  expect(await compareFiles(target, image)).toBeUndefined();
  expect((await stat(target)).blocks * 512).toBeLessThanOrEqual(6 * MiB);
  expect((await readdir(folder)).sort()).toEqual(["restored.raw", "web.raw"]);
});

test("--force replaces a file, longer or shorter, through a link too, and keeps its mode", async () => {
  await backUpRaw(repository, image);
  const old = await garbage("old.raw", SIZE + 777);
  await chmod(old, 0o640);
  const link = join(folder, "link.raw");
  await symlink("old.raw", link);
  await repository.json("restore", "web", "--to", link, "--force");
  expect(await compareFiles(old, image)).toBeUndefined();
  expect((await stat(old)).mode & 0o777).toBe(0o640);
  await truncate(old, 100);
  await repository.json("restore", "web", "--to", old, "--force");
  expect(await compareFiles(old, image)).toBeUndefined();
});

test("qcow2: sound, equal to the image, and small; --force replaces one", async () => {
  await backUpRaw(repository, image);
  const target = join(folder, "restored.qcow2");
  await repository.json("restore", "web", "--to", `qcow2:${target}`);
  await qemuImg("check", "-q", "-f", "qcow2", target);
  await qemuImg("compare", "-q", "-f", "raw", "-F", "qcow2", image, target);
  expect(JSON.parse(await qemuImg("info", "--output=json", target))).toMatchObject({ "virtual-size": SIZE });
  expect((await stat(target)).blocks * 512).toBeLessThanOrEqual(7 * MiB);
  await garbage("restored.qcow2", 100);
  await repository.json("restore", "web", "--to", `qcow2:${target}`, "--force");
  await qemuImg("compare", "-q", "-f", "raw", "-F", "qcow2", image, target);
});

test("qcow2 of a disk of odd size ends in zeros up to the sector", async () => {
  const odd = join(folder, "odd.raw");
  await makeImage(odd, { size: MiB + 17, seed: 5, parts: [{ kind: "random", length: MiB + 17 }] });
  await backUpFile(repository, odd);
  const target = join(folder, "restored.qcow2");
  await repository.json("restore", "web", "--to", `qcow2:${target}`);
  const padded = join(folder, "padded.raw");
  await copyFile(odd, padded);
  await truncate(padded, MiB + 512);
  await qemuImg("compare", "-q", "-f", "raw", "-F", "qcow2", padded, target);
});

test("export: raw, qcow2 and vmdk under the names that were asked for, and nothing else", async () => {
  await backUpRaw(repository, image);
  for (const format of ["raw", "qcow2", "vmdk"] as const) {
    const target = join(folder, `web.${format}-export`);
    await repository.json("export", "web", "--to", format, target);
    await qemuImg("compare", "-q", "-f", "raw", "-F", format, image, target);
    expect((await stat(target)).blocks * 512).toBeLessThanOrEqual(7 * MiB);
  }
  const vmdk = join(folder, "web.vmdk-export");
  await qemuImg("check", "-q", "-f", "vmdk", vmdk);
  const head = (await readFile(vmdk)).subarray(0, 64 * KiB).toString("latin1");
  expect(head).toContain(` ${SIZE / 512} SPARSE "web.vmdk-export"\n`);
  expect(head).not.toContain(".partial");
  const again = await repository.run("export", "web", "--to", "vmdk", vmdk);
  expect(again).toMatchObject({ code: 2 });
  const files = ["web.qcow2-export", "web.raw", "web.raw-export", "web.vmdk-export"];
  expect((await readdir(folder)).sort()).toEqual(files);
});

test("a vmdk of odd size, under a name that no descriptor can hold, over one that is there", async () => {
  const odd = join(folder, "odd.raw");
  await makeImage(odd, { size: MiB + 17, seed: 5, parts: [{ kind: "random", length: MiB + 17 }] });
  await backUpFile(repository, odd);
  const refused = await repository.run("export", "web", "--to", "vmdk", join(folder, 'a"b.vmdk'));
  expect(refused).toMatchObject({ code: 2 });
  const target = await garbage("odd.vmdk", 100);
  await repository.json("export", "web", "--to", "vmdk", target, "--force");
  await truncate(odd, MiB + 512);
  await qemuImg("compare", "-q", "-f", "raw", "-F", "vmdk", odd, target);
  expect((await readdir(folder)).sort()).toEqual(["odd.raw", "odd.vmdk", "web.raw"]);
});

test("an NBD target full of garbage: zeros are written, what lies behind the disk's end stays", async () => {
  await backUpRaw(repository, image);
  const raw = await garbage("target.raw", SIZE + MiB);
  const server = await startQemuNbd(["--format=raw", raw], { exportName: "target" });
  onTestFinished(() => server.stop());
  await repository.json("restore", "web", "--to", server.uri);
  await expectOverGarbage(raw);
});

test("an NBD target that cannot write zeros gets them as data", async () => {
  await backUpRaw(repository, image);
  const raw = await garbage("target.raw", SIZE);
  const parameters = ["zeromode=none"];
  const server = await nbdkit(["--filter=nozero", "file", raw, ...parameters], { tcp: true });
  await repository.json("restore", "web", "--to", server.uri);
  await expectOverGarbage(raw);
});

if (loopDevicesWork()) {
  test("a block device: only with --force; zeros are written, what lies behind stays", async () => {
    await backUpRaw(repository, image);
    const raw = await garbage("device.raw", SIZE + 64 * KiB);
    const device = attachLoop(raw);
    const refused = await repository.run("restore", "web", "--to", device);
    expect(refused).toMatchObject({ code: 2, stdout: "" });
    expect(refused.stderr).toMatch(/device: all it holds will be lost; give --force/);
    expect((await readFile(device)).every((byte) => byte === 0xaa)).toBe(true);
    await repository.json("restore", "web", "--to", device, "--force");
    await expectOverGarbage(device);
  });

  test("a block device that is too small is left as it is", async () => {
    await backUpRaw(repository, image);
    const device = attachLoop(await garbage("device.raw", SIZE - 64 * KiB));
    const { code, stdout, stderr } = await repository.run("restore", "web", "--to", device, "--force");
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toContain(`${device} has ${SIZE - 64 * KiB} bytes and the disk ${SIZE}; choose a target`);
    expect((await readFile(device)).every((byte) => byte === 0xaa)).toBe(true);
  });
}
