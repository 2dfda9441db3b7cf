import { execFile } from "node:child_process";
import { copyFile, mkdir, readFile, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { KiB, MiB } from "../../src/bytes/size.ts";
import { AppError } from "../../src/errors.ts";
import { estimateBackup } from "../../src/backup/estimate.ts";
import { dryRun } from "../../src/backup/run.ts";
import type { ChunkWorkers } from "../../src/chunk/workers.ts";
import { generationBitmap } from "../../src/qemu/names.ts";
import type { Manifest } from "../../src/repository/manifest.ts";
import { BackedUpVm } from "../support/backed-up-vm.ts";
import { startWorkers } from "../support/backups.ts";
import { createQcow2, qemuImg, qemuIo } from "../support/exported-images.ts";
import { temporaryFolder } from "../support/folder.ts";
import { bitmapOf, bitmapsIn, ImageBackups, serverOf } from "../support/image-backups.ts";
import { attachLoop, loopDevicesWork } from "../support/loop-device.ts";
import { memoryRepository, TEST_REPOSITORY } from "../support/memory-repository.ts";
import { failure } from "../support/outcomes.ts";
import { startQemuNbd } from "../support/qemu-nbd.ts";
import { QEMU, startQemuVm } from "../support/qemu-vm.ts";

const SIZE = 16 * MiB;
const never = new AbortController().signal;

let workers: ChunkWorkers;
let folder: string;
let web: ImageBackups;

beforeAll(async () => {
  workers = await startWorkers(memoryRepository());
});

afterAll(() => workers.close());

beforeEach(async () => {
  folder = await temporaryFolder();
  web = await ImageBackups.start(workers);
});

/** A qcow2 image with 1 MiB of data in it. */
async function newImage(name = "web.qcow2", size = SIZE): Promise<string> {
  const image = join(folder, name);
  await createQcow2(image, size);
  await qemuIo("qcow2", image, "write -P 1 0 1M");
  return image;
}

function read({ disks }: Manifest): number[] {
  return disks.map(({ counts }) => counts.bytesRead);
}

describe("an image is backed up", () => {
  test("full first, then what was written since, and no more", async () => {
    const image = await newImage();
    const first = await web.backup(image);
    expect(first).toMatchObject({ kind: "full", reason: "first generation of web", consistency: "unknown" });
    expect(read(first)).toEqual([MiB]);
    await web.expectHolds(first, image);
    expect(await bitmapsIn(image)).toEqual([bitmapOf(first)]);
    expect(first.disks[0]!.bitmap).toBe(bitmapOf(first));

    await qemuIo("qcow2", image, "write -P 2 8M 64k", "write -z 256k 64k");
    const second = await web.backup(image);
    expect(second).toMatchObject({
      kind: "incremental",
      reason: `bitmap since generation ${first.generation}`,
      parent: { generation: first.generation },
    });
    expect(second.disks[0]!.counts).toMatchObject({ bytesRead: 64 * KiB, bytesZero: 64 * KiB });
    await web.expectHolds(second, image);
    expect(await bitmapsIn(image)).toEqual([bitmapOf(second)]);

    const third = await web.backup(image);
    expect(third).toMatchObject({ kind: "incremental", parent: { generation: second.generation } });
    expect(read(third)).toEqual([0]);
    await web.expectHolds(third, image);
    expect(web.warnings).toEqual([]);
    expect(await qemuImg("check", image)).toContain("No errors were found");
  });

  test("several of them as the disks of one generation", async () => {
    const [vda, vdb] = [await newImage("a.qcow2"), join(folder, "b.raw")];
    await writeFile(vdb, Buffer.alloc(2 * MiB, 3));
    const first = await web.backup({ vda, vdb });
    expect(first.disks.map(({ name, kind }) => [name, kind])).toEqual([
      ["vda", "full"],
      ["vdb", "full"],
    ]);
    await qemuIo("qcow2", vda, "write -P 4 4M 128k");
    await qemuIo("raw", vdb, "write -P 5 0 64k");
    const second = await web.backup({ vda, vdb });
    expect(second.disks.map(({ kind, reason }) => [kind, reason])).toEqual([
      ["incremental", `bitmap since generation ${first.generation}`],
      ["rescan", expect.stringContaining("an image of this kind (raw) keeps none") as string],
    ]);
    expect(read(second)).toEqual([128 * KiB, 2 * MiB]);
    for (const [name, image] of Object.entries({ vda, vdb })) await web.expectHolds(second, image, name);
    expect(web.warnings).toEqual([]);
  });

  test.each(["vmdk", "vdi", "vhdx", "vhd"])("of the format whose files are called .%s", async (extension) => {
    const image = join(folder, `web.${extension}`);
    const format = extension === "vhd" ? "vpc" : extension;
    const source = join(folder, "source.raw");
    await writeFile(source, Buffer.concat([Buffer.alloc(MiB, 9), Buffer.alloc(3 * MiB)]));
    await qemuImg("convert", "-f", "raw", "-O", format, source, image);
    const [first, second] = [await web.backup(image), await web.backup(image)];
    await web.expectHolds(first, image);
    expect(second).toMatchObject({ kind: "rescan" });
    expect(second.reason).toContain(`an image of this kind (${format}) keeps none`);
  });

  test.runIf(loopDevicesWork())("on a block device, whose format has to be said", async () => {
    const file = join(folder, "file");
    await writeFile(file, Buffer.alloc(MiB, 7));
    const device = attachLoop(file);
    expect(() => web.request(device)).toThrow(/The name of \/dev\/loop\d+ does not tell its format/);
    const first = await web.backup(device, { format: "raw" });
    expect((await web.backups.restore(first.disks[0]!)).equals(await readFile(file))).toBe(true);
  });

  test("through the images below it", async () => {
    const base = await newImage("base.qcow2");
    const image = join(folder, "web.qcow2");
    await qemuImg("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", image);
    await qemuIo("qcow2", image, "write -P 2 64k 64k");
    const first = await web.backup(image);
    await web.expectHolds(first, image);
    await qemuIo("qcow2", image, "write -P 3 128k 64k");
    const second = await web.backup(image);
    expect(second.kind).toBe("incremental");
    await web.expectHolds(second, image);
    expect(await bitmapsIn(base)).toEqual([]);
  });

  test("as it is, when that is asked for", async () => {
    const image = await newImage();
    const before = { bytes: await readFile(image), mtimeMs: (await stat(image)).mtimeMs };
    const first = await web.backup(image, { leave: true });
    expect(first.disks[0]!.bitmap).toBeUndefined();
    const second = await web.backup(image, { leave: true });
    expect(second.kind).toBe("rescan");
    await web.expectHolds(second, image);
    expect((await readFile(image)).equals(before.bytes)).toBe(true);
    expect((await stat(image)).mtimeMs).toBe(before.mtimeMs);
  });

  test("as it is by a dry run and by an estimate, which tells what the bitmap says", async () => {
    const image = await newImage();
    await web.backup(image);
    await qemuIo("qcow2", image, "write -P 2 8M 64k");
    const { mtimeMs } = await stat(image);
    expect(await dryRun(web.request(image), never)).toMatchObject([{ kind: "incremental", size: SIZE }]);
    const { disks } = await estimateBackup(web.request(image), never);
    expect(disks).toMatchObject([{ kind: "incremental", read: { max: 64 * KiB, likely: 64 * KiB } }]);
    expect((await stat(image)).mtimeMs).toBe(mtimeMs);
  });

  test("incremental by an older bitmap, after runs that left it as it is", async () => {
    const image = await newImage();
    const first = await web.backup(image);
    await qemuIo("qcow2", image, "write -P 2 8M 64k");
    await web.backup(image, { leave: true });
    expect(await bitmapsIn(image)).toEqual([bitmapOf(first)]);
    await qemuIo("qcow2", image, "write -P 3 9M 64k");
    const third = await web.backup(image);
    expect(third).toMatchObject({ kind: "incremental", parent: { generation: first.generation } });
    expect(read(third)).toEqual([128 * KiB]);
    await web.expectHolds(third, image);
  });
});

describe("with a VM", () => {
  test("that ran before and runs afterwards: all are incremental, and nothing is missed", async () => {
    const vm = await BackedUpVm.start([{ node: "drive0", size: SIZE }]);
    const image = vm.disks[0]!.path;
    await vm.write("drive0", 0, MiB, 1);
    const first = await web.backupVm(vm.options());
    await vm.write("drive0", 2 * MiB, 64 * KiB, 2);
    await vm.quit();

    const second = await web.backup(image); // also as the disk that it was there
    expect(second).toMatchObject({ kind: "incremental", parent: { generation: first.generation } });
    expect(read(second)).toEqual([64 * KiB]);
    await web.expectHolds(second, image);

    await vm.boot();
    await vm.write("drive0", 3 * MiB, 64 * KiB, 3);
    const third = await web.backupVm(vm.options());
    expect(third).toMatchObject({ kind: "incremental", parent: { generation: second.generation } });
    expect(read(third)).toEqual([64 * KiB]);
    expect(await vm.bitmaps()).toEqual({ drive0: [bitmapOf(third)] });
    await vm.quit();
    await web.expectHolds(third, image);
    expect(vm.warnings.concat(web.warnings)).toEqual([]);
  });

  test("that runs on it: refused, and neither is touched", async () => {
    const vm = await BackedUpVm.start([{ node: "drive0", size: SIZE }]);
    await expect(web.backup(vm.disks[0]!.path)).rejects.toMatchObject({
      kind: "source",
      code: "E_IMAGE_IN_USE",
      message: expect.stringMatching(
        /drive0.qcow2 is in use: if a VM runs on it, back the VM up by qmp:/,
      ) as string,
    });
    expect(await vm.bitmaps()).toEqual({ drive0: [] });
  });

  test("that would be started on one of them while they are read: it is not, and nothing writes", async () => {
    const images = { vda: await newImage("a.qcow2"), vdb: await newImage("b.qcow2") };
    const refused: unknown[] = [];
    const begun = new Set<string>();
    await web.backup(images, {
      hooks: {
        before: async (operation) => {
          if (operation !== "part" || begun.has(operation)) return; // the first bytes that were read
          begun.add(operation);
          for (const path of Object.values(images)) {
            refused.push(await failure(runVm(path)));
            refused.push(await failure(qemuIo("qcow2", path, "write 0 64k")));
          }
        },
      },
    });
    expect(refused).toHaveLength(4);
    for (const error of refused) expect(String(error)).toContain('Failed to get "write" lock');
    const vm = await startQemuVm({ disks: [{ node: "drive0", path: images.vda }] }); // free again
    await vm.stop();
  });

  test("that was killed: its bitmaps are lost, which is seen, and they are cleared away", async () => {
    const vm = await BackedUpVm.start([{ node: "drive0", size: SIZE }]);
    const image = vm.disks[0]!.path;
    const first = await web.backupVm(vm.options());
    await vm.quit();
    await vm.boot();
    await vm.write("drive0", 0, 64 * KiB, 1);
    await vm.process.stop();
    const second = await web.backup(image);
    expect(second.kind).toBe("rescan");
    expect(second.reason).toContain("QEMU ended without storing its bitmap, which is lost");
    await web.expectHolds(second, image);
    expect(await bitmapsIn(image)).toEqual([bitmapOf(second)]);
    expect((await web.backup(image)).parent).toMatchObject({ generation: second.generation });
    expect(first.generation).not.toBe(second.generation);
  });

  test("whose disks stand on it: it can be read, and gets no bitmap", async () => {
    const template = await newImage("template.qcow2");
    const path = join(folder, "vm.qcow2");
    await qemuImg("create", "-q", "-f", "qcow2", "-b", template, "-F", "qcow2", path);
    const vm = await startQemuVm({ disks: [{ node: "drive0", path }] });
    try {
      const first = await web.backup(template);
      await web.expectHolds(first, template);
      expect(first.disks[0]!.bitmap).toBeUndefined();
      expect(web.warnings).toEqual([expect.stringContaining("gets no bitmap")]);
    } finally {
      await vm.stop();
    }
    expect(await bitmapsIn(template)).toEqual([]);
  });
});

describe("no change is lost", () => {
  const commitFails = (error: Error) => ({
    before: (operation: string, key: string): void => {
      if (operation === "put" && key.startsWith("generations/")) throw error;
    },
  });

  test("when the run fails: the new bitmap goes, the old one stays", async () => {
    const image = await newImage();
    const first = await web.backup(image);
    await qemuIo("qcow2", image, "write -P 2 8M 64k");
    const full = new AppError("full", "E_STORE_FULL", "No space");
    await expect(web.backup(image, { hooks: commitFails(full) })).rejects.toBe(full);
    expect(await bitmapsIn(image)).toEqual([bitmapOf(first)]);
    const second = await web.backup(image);
    expect(read(second)).toEqual([64 * KiB]);
    await web.expectHolds(second, image);
  });

  test.each([true, false])("when nobody knows (it is there: %s): both bitmaps stay", async (there) => {
    const image = await newImage();
    const first = await web.backup(image);
    await qemuIo("qcow2", image, "write -P 2 8M 64k");
    const silent = new AppError("unavailable", "E_STORE", "No answer");
    let asked = false;
    const step = (operation: string, key: string): void => {
      if (!key.startsWith("generations/") || (operation !== "put" && !(asked && operation === "get"))) return;
      asked = true;
      throw silent;
    };
    const hooks = there
      ? {
          after: step,
          before: (operation: string, key: string) => operation === "get" && step(operation, key),
        }
      : { before: step };
    const error = await failure(web.backup(image, { hooks: hooks as never }));
    expect(error).toMatchObject({ code: "E_COMMIT_UNKNOWN" });
    expect(await bitmapsIn(image)).toHaveLength(2);
    await qemuIo("qcow2", image, "write -P 3 9M 64k");
    const next = await web.backup(image);
    expect(next.kind).toBe("incremental");
    expect(read(next)).toEqual([there ? 64 * KiB : 128 * KiB]);
    expect(next.parent!.generation === first.generation).toBe(!there);
    await web.expectHolds(next, image);
    expect(await bitmapsIn(image)).toEqual([bitmapOf(next)]);
  });

  test("when it is written between the plan and the lock: both bitmaps have it", async () => {
    const image = await newImage();
    await web.backup(image);
    await qemuIo("qcow2", image, "write -P 2 8M 64k");
    const second = await web.backup(image, {
      afterPlan: () => qemuIo("qcow2", image, "write -P 3 9M 64k"),
    });
    expect(read(second)).toEqual([128 * KiB]);
    await web.expectHolds(second, image);
  });

  test.each([
    ["resized", grow, "E_IMAGE_CHANGED"],
    ["open in a program that was killed", killedOn, "E_IMAGE"],
  ])(
    "when it is %s between the plan and the lock: no backup, and the next one is a rescan",
    async (_, change, code) => {
      const image = await newImage();
      const first = await web.backup(image);
      const afterPlan = (): Promise<void> => change(image);
      await expect(web.backup(image, { afterPlan })).rejects.toMatchObject({ kind: "source", code });
      expect(await bitmapsIn(image)).toEqual([bitmapOf(first)]);
      const second = await web.backup(image);
      expect(second.kind).toBe("rescan");
      await web.expectHolds(second, image);
    },
  );

  test("when it was resized: a rescan says so", async () => {
    const image = await newImage();
    await web.backup(image);
    await grow(image);
    await qemuIo("qcow2", image, "write -P 5 20M 64k");
    const second = await web.backup(image);
    expect(second.reason).toContain("its size changed from 16.0 MiB to 24.0 MiB");
    await web.expectHolds(second, image);
    expect((await web.backup(image)).kind).toBe("incremental");
  });

  test("when a snapshot in it was gone back to, for which the bitmaps had to go", async () => {
    const image = await newImage();
    await qemuImg("snapshot", "-c", "before", image);
    await qemuIo("qcow2", image, "write -P 2 0 64k");
    const first = await web.backup(image);
    const refused = await failure(qemuImg("snapshot", "-a", "before", image));
    expect(String(refused)).toContain("bitmaps");
    await qemuImg("bitmap", "--remove", image, bitmapOf(first));
    await qemuImg("snapshot", "-a", "before", image);
    const second = await web.backup(image);
    expect(second.kind).toBe("rescan");
    expect(second.reason).toContain(`it has no bitmap of generation ${first.generation}`);
    await web.expectHolds(second, image);
  });

  test("when an older copy took its place: by the bitmap that the copy has", async () => {
    const image = await newImage();
    const first = await web.backup(image);
    await copyFile(image, `${image}.copy`);
    await qemuIo("qcow2", image, "write -P 2 0 64k");
    await web.backup(image);
    await copyFile(`${image}.copy`, image);
    await qemuIo("qcow2", image, "write -P 3 1M 64k");
    const third = await web.backup(image);
    expect(third).toMatchObject({ kind: "incremental", parent: { generation: first.generation } });
    await web.expectHolds(third, image);
  });

  test("when a snapshot was made over it: the bitmap is on the image below, and of no use", async () => {
    const base = await newImage("base.qcow2");
    await web.backup(base);
    const image = join(folder, "over.qcow2");
    await qemuImg("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", image);
    const second = await web.backup(image);
    expect(second.reason).toContain("its bitmap is on an image below: a snapshot was made over it");
    await web.expectHolds(second, image);
  });

  test("bitmaps of others stay; those of runs that died go, and so does a disabled one", async () => {
    const image = await newImage();
    const foreign = ["mine", generationBitmap("11111111-2222-4333-8444-555555555555", uuid(1), "disk")];
    for (const name of foreign) await qemuImg("bitmap", "--add", image, name);
    await qemuIo("qcow2", image, "write -P 2 0 64k");
    const first = await web.backup(image);
    const orphan = generationBitmap(TEST_REPOSITORY, uuid(2), "disk");
    await qemuImg("bitmap", "--add", image, orphan);
    const second = await web.backup(image);
    expect(second).toMatchObject({ kind: "incremental", parent: { generation: first.generation } });
    expect(web.warnings).toEqual([expect.stringContaining(`a bitmap of generation ${uuid(2)}`)]);
    expect(await bitmapsIn(image)).toEqual([...foreign, bitmapOf(second)].sort());

    await qemuImg("bitmap", "--disable", image, bitmapOf(second));
    await qemuIo("qcow2", image, "write -P 3 4M 64k");
    const third = await web.backup(image, { hooks: { before: (operation, key) => onlyNew(operation, key) } });
    async function onlyNew(operation: string, key: string): Promise<void> {
      if (operation !== "put" || !key.startsWith("generations/")) return;
      // were the disabled one still there, a run that died now would look as if both together knew everything
      expect(await bitmapsIn(image)).not.toContain(bitmapOf(second));
    }
    expect(third.reason).toContain("its bitmap was disabled, so changes went unrecorded");
    await web.expectHolds(third, image);
    const server = await startQemuNbd(["--read-only", "--format=qcow2", "--bitmap=mine", image]);
    await server.stop(); // it still can be relied on
  });

  test("when the server ends in the middle: the run fails, and says which image", async () => {
    const image = await newImage();
    const first = await web.backup(image);
    await qemuIo("qcow2", image, "write -P 2 0 8M");
    let killed: number | undefined;
    const error = await failure(
      web.backup(image, {
        hooks: {
          before: async (operation) => {
            if (operation !== "beginUpload" || killed !== undefined) return;
            killed = (await serverOf(image))!;
            process.kill(killed, "SIGKILL");
            await vi.waitUntil(async () => (await serverOf(image)) === undefined);
          },
        },
      }),
    );
    expect(error).toMatchObject({ kind: "source" });
    expect(await bitmapsIn(image)).toEqual([bitmapOf(first)]);
  });
});

describe("is refused, by a message that names it", () => {
  const refusal = async (image: string, format?: string): Promise<unknown> =>
    await failure(web.backup(image, format === undefined ? {} : { format }));

  test("what is not there, or no image", async () => {
    const gone = join(folder, "gone.qcow2");
    expect(await refusal(gone)).toMatchObject({
      kind: "notFound",
      code: "E_IMAGE_MISSING",
      message: `There is no image ${gone}`,
    });
    const directory = join(folder, "folder.raw");
    await mkdir(directory);
    expect(await refusal(directory)).toMatchObject({ kind: "usage", code: "E_IMAGE_KIND" });
    expect(await refusal("/dev/null", "raw")).toMatchObject({ kind: "usage", code: "E_IMAGE_KIND" });
    const circle = join(folder, "circle.qcow2");
    await symlink(circle, circle);
    expect(await refusal(circle)).toMatchObject({ kind: "source", code: "E_IMAGE" });
  });

  test("what has the wrong name", async () => {
    const image = join(folder, "raw.qcow2");
    await writeFile(image, Buffer.alloc(MiB, 1));
    expect(await refusal(image)).toMatchObject({
      kind: "source",
      code: "E_IMAGE",
      message: expect.stringMatching(
        /raw.qcow2 cannot be read as qcow2: .*Image is not in qcow2 format/,
      ) as string,
    });
  });

  test("a missing backing file, and one whose format nobody knows", async () => {
    const base = await newImage("base.qcow2");
    const image = join(folder, "web.qcow2");
    await qemuImg("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", image);
    await qemuImg("rebase", "-u", "-f", "qcow2", "-b", join(folder, "gone.qcow2"), "-F", "qcow2", image);
    expect(await refusal(image)).toMatchObject({
      kind: "source",
      code: "E_IMAGE_BACKING",
      message: expect.stringContaining(
        `The backing file of image ${image}, ${folder}/gone.qcow2, cannot be read`,
      ) as string,
    });
    await forgetBackingFormat(image);
    expect(await refusal(image)).toMatchObject({
      code: "E_IMAGE_BACKING",
      message: expect.stringContaining("does not say which format its backing file") as string,
    });
  });

  test("an encrypted one, and a corrupt one", async () => {
    const image = await newImage("sealed.qcow2");
    await patch(image, (bytes) => bytes.writeUInt32BE(1, 32)); // crypt_method: AES
    expect(await refusal(image)).toMatchObject({ kind: "usage", code: "E_IMAGE_ENCRYPTED" });
    const corrupt = await newImage("corrupt.qcow2");
    await patch(corrupt, (bytes) => bytes.writeUInt8(bytes.readUInt8(79) | 2, 79)); // incompatible_features: bit 1
    expect(await refusal(corrupt)).toMatchObject({
      kind: "source",
      code: "E_IMAGE_CORRUPT",
      message: `Image ${corrupt} is marked as corrupt: look at it with qemu-img check`,
    });
  });
});

test("a raw image that begins as a qcow2 image does is read as raw: its guest wrote that", async () => {
  const secret = join(folder, "secret.raw");
  await writeFile(secret, Buffer.alloc(MiB, "secret of the host "));
  const trap = join(folder, "trap.qcow2");
  await qemuImg("create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", trap);
  for (const name of ["web.img", "web.raw"]) {
    const image = join(folder, name);
    await copyFile(trap, image);
    const first = await web.backup(image);
    const restored = await web.backups.restore(first.disks[0]!);
    expect(restored.subarray(0, (await stat(image)).size).equals(await readFile(image))).toBe(true);
    expect(restored.includes("secret of the host")).toBe(false);
    expect(web.warnings.at(-1)).toMatch(/begins as a qcow2 image does and is read as raw all the same/);
  }
});

function uuid(number: number): string {
  return `01990000-0000-7000-8000-${String(number).padStart(12, "0")}`;
}

/** Fails with what QEMU says, if it does not run. */
async function runVm(image: string): Promise<void> {
  const drive = `file=${image},format=qcow2,if=virtio`;
  const args = ["-machine", "pc", "-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none", "-S"];
  await promisify(execFile)(QEMU, [...args, "-drive", drive], { timeout: 20_000 });
}

async function grow(image: string): Promise<void> {
  await qemuImg("resize", "-q", image, "24M");
}

/** What a VM that is killed leaves. */
async function killedOn(image: string): Promise<void> {
  const vm = await startQemuVm({ disks: [{ node: "drive0", path: image }] });
  await vm.stop();
}

/** Older versions of QEMU made such images: takes the header extension out that says it (qcow2.txt: 0xe2792aca). */
async function forgetBackingFormat(image: string): Promise<void> {
  // an extension of a kind that nobody knows is ignored
  await patch(image, (bytes) =>
    bytes.writeUInt32BE(0x12345678, bytes.indexOf(Buffer.from("e2792aca", "hex"))),
  );
}

async function patch(file: string, change: (bytes: Buffer) => void): Promise<void> {
  const bytes = await readFile(file);
  change(bytes);
  await writeFile(file, bytes);
}
