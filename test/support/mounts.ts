import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { onTestFinished } from "vitest";

/** A file system in memory, of so many bytes, mounted on the folder until the test ends. Needs `mountsWork`. */
export function mountTmpfs(folder: string, bytes: number): { resize(bytes: number): void } {
  mount("-t", "tmpfs", "-o", `size=${bytes}`, "tmpfs", folder);
  onTestFinished(() => void spawnSync("umount", [folder]));
  return { resize: (size) => mount("-o", `remount,size=${size}`, folder) };
}

/** False where a container or a missing privilege forbids mounts: found out by trying. */
export function mountsWork(): boolean {
  const folder = mkdtempSync(join(tmpdir(), "blockhaul-mount-"));
  try {
    const works = spawnSync("mount", ["-t", "tmpfs", "tmpfs", folder]).status === 0;
    return works && spawnSync("umount", [folder]).status === 0;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function mount(...args: string[]): void {
  const { status, stderr } = spawnSync("mount", args, { encoding: "utf8" });
  if (status !== 0) throw new Error(`mount ${args.join(" ")}: ${stderr}`);
}
