import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { onTestFinished } from "vitest";

/** A block device backed by the file, until the test ends. Needs `loopDevicesWork`. */
export function attachLoop(file: string): string {
  const { status, stdout, stderr } = losetup("--find", "--show", file);
  if (status !== 0) throw new Error(`losetup ${file}: ${stderr}`);
  const device = stdout.trim();
  onTestFinished(() => void losetup("--detach", device));
  return device;
}

/** False where a container or a missing privilege forbids them: found out by trying. */
export function loopDevicesWork(): boolean {
  const folder = mkdtempSync(join(tmpdir(), "blockhaul-loop-"));
  const file = join(folder, "file");
  try {
    writeFileSync(file, "");
    truncateSync(file, 64 * 1024);
    const { status, stdout } = losetup("--find", "--show", file);
    return status === 0 && losetup("--detach", stdout.trim()).status === 0;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function losetup(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  return spawnSync("losetup", args, { encoding: "utf8" });
}
