import { execFile } from "node:child_process";
import { mkdir, mkdtemp, open, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import type { Guest } from "./guest.ts";

const exec = promisify(execFile);
/** e2fsprogs is where users without root do not look. */
const env = { ...process.env, PATH: `${process.env["PATH"]}:/usr/sbin:/sbin`, LC_ALL: "C" };

/**
 * Makes a qcow2 image with an ext4 that has `/seq`, all zeros. It is there from the start so that later numbers are
 * written in place: then `sequence` is right without a replay of the journal. No lazy initialisation either, which
 * would make the kernel write long after the boot.
 *
 * @param size bytes.
 * @returns path.
 */
export async function makeDisk(path: string, size: number): Promise<string> {
  const files = `${path}.files`;
  const raw = `${path}.raw`;
  try {
    await mkdir(files);
    await writeFile(join(files, "seq"), "00000000");
    await writeFile(raw, "");
    await truncate(raw, size);
    const options = "lazy_itable_init=0,lazy_journal_init=0";
    await exec("mkfs.ext4", ["-q", "-F", "-b", "4096", "-E", options, "-d", files, raw], { env });
    await exec("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw, path]);
  } finally {
    await rm(files, { recursive: true, force: true });
    await rm(raw, { force: true });
  }
  return path;
}

/**
 * A raw copy of what one of a running guest's disks holds now, in the guest's folder. It is of one instant only while
 * the guest is frozen or paused.
 *
 * @param number of the disk, from 0.
 * @returns its path.
 */
export async function frozenCopy(guest: Pick<Guest, "disks" | "folder">, number: number): Promise<string> {
  const copy = join(await mkdtemp(join(guest.folder, "copy-")), "disk.raw");
  await exec("qemu-img", ["convert", "-U", "-f", "qcow2", "-O", "raw", guest.disks[number]!, copy]);
  return copy;
}

/** The number that the guest's writer left last on this disk, read without a replay of the journal. */
export function sequence(image: string): Promise<number> {
  return withRaw(image, async (raw) => {
    const { stdout } = await exec("debugfs", ["-R", "cat /seq", raw], { env });
    if (!/^\d{8}$/.test(stdout)) throw new Error(`/seq of ${image} is no number: ${JSON.stringify(stdout)}`);
    return Number(stdout);
  });
}

/** `e2fsck -fn`: looks at everything, changes nothing. Exit code 0: not a single fault. */
export function fsck(image: string): Promise<{ readonly code: number; readonly output: string }> {
  return withRaw(
    image,
    (raw) =>
      new Promise((done, fail) => {
        execFile("e2fsck", ["-fn", raw], { env }, (error, stdout, stderr) => {
          const code = error === null ? 0 : error.code;
          if (typeof code === "number") done({ code, output: stdout + stderr });
          else fail(error ?? new Error("e2fsck was ended by a signal"));
        });
      }),
  );
}

/** Whether the journal has something that the next mount would have to replay: the file system was in use. */
export function needsRecovery(image: string): Promise<boolean> {
  return withRaw(image, async (raw) => {
    const { stdout } = await exec("dumpe2fs", ["-h", raw], { env });
    return /^Filesystem features:.* needs_recovery\b/m.test(stdout);
  });
}

/** What e2fsprogs needs: a raw file. A qcow2 image, also one in use, is copied for as long as `work` takes. */
async function withRaw<T>(image: string, work: (raw: string) => Promise<T>): Promise<T> {
  if (!(await isQcow2(image))) return await work(image);
  const folder = await mkdtemp(join(tmpdir(), "raw-"));
  try {
    const raw = join(folder, "disk.raw");
    await exec("qemu-img", ["convert", "-U", "-f", "qcow2", "-O", "raw", image, raw]);
    return await work(raw);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function isQcow2(path: string): Promise<boolean> {
  const file = await open(path);
  try {
    const { buffer } = await file.read(Buffer.alloc(4), 0, 4, 0);
    return buffer.toString("latin1") === "QFI\xfb";
  } finally {
    await file.close();
  }
}
