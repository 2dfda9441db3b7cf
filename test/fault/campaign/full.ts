import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, statfsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** A file system in memory, on a folder. */
export class SmallDisk {
  readonly path: string;

  private constructor(path: string) {
    this.path = path;
  }

  /** @param bytes how much it takes. @returns undefined where mounts are forbidden. */
  static mount(path: string, bytes: number): SmallDisk | undefined {
    mkdirSync(path, { recursive: true });
    const { status } = spawnSync("mount", ["-t", "tmpfs", "-o", `size=${sizeOf(bytes)}`, "tmpfs", path]);
    return status === 0 ? new SmallDisk(path) : undefined;
  }

  /** Lets so many bytes more in than there are. */
  leave(bytes: number): void {
    const { blocks, bfree, bsize } = statfsSync(this.path);
    this.#resize((blocks - bfree) * bsize + bytes);
  }

  resize(bytes: number): void {
    this.#resize(bytes);
  }

  unmount(): void {
    const { status, stderr } = spawnSync("umount", [this.path], { encoding: "utf8" });
    if (status !== 0) throw new Error(`umount ${this.path}: ${stderr}`);
  }

  #resize(bytes: number): void {
    const options = `remount,size=${sizeOf(bytes)}`;
    const { status, stderr } = spawnSync("mount", ["-o", options, this.path], { encoding: "utf8" });
    if (status !== 0) throw new Error(`mount -o ${options} ${this.path}: ${stderr}`);
  }
}

/** Not 0, which tmpfs takes for "no limit". */
function sizeOf(bytes: number): number {
  return Math.max(4096, bytes);
}

export function makeFolder(name: string): string {
  return mkdtempSync(join(tmpdir(), `blockhaul-${name}-`));
}

export function removeFolder(path: string): void {
  rmSync(path, { recursive: true, force: true });
}
