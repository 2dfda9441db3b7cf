import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import type { DiskTarget } from "../disk/disk.ts";
import { PartialFile } from "../disk/partial-file.ts";
import { runProgram, startProgram, type RunningProgram } from "../flow/programs.ts";
import { openNbdTarget } from "../nbd/target.ts";
import { parseNbdUri } from "../nbd/uri.ts";
import { whenServed } from "./served.ts";
import { expectVmdkName, renameVmdk } from "./vmdk-name.ts";

/** Formats of images that QEMU's tools make and we write through them. */
export type ImageFormat = "qcow2" | "vmdk";

/** A new image that is written through qemu-nbd, without a copy on the way, and gets its name when it is finished. */
export interface ImageTarget {
  readonly disk: DiskTarget;
  /** Flushes, ends qemu-nbd, and publishes the image. */
  finish(signal: AbortSignal): Promise<void>;
  /** Without `finish` before it, removes the image. Safe to call twice. */
  close(): Promise<void>;
}

/**
 * Creates `path` as an image of `size` bytes, which gets its name by `finish`. A vmdk is of one sparse file
 * ("monolithicSparse").
 *
 * @param options force: replace an existing file, as `PartialFile.create` does.
 * @throws AppError as `PartialFile.create`; E_PROGRAM_MISSING (usage), E_PROGRAM (source).
 */
export async function createImage(
  format: ImageFormat,
  path: string,
  size: number,
  options: { readonly force: boolean },
  signal: AbortSignal,
): Promise<ImageTarget> {
  const file = await PartialFile.create(resolve(path), options); // qemu takes "a:b" for a protocol, "/a:b" for a path
  const folder = await mkdtemp(join(tmpdir(), "blockhaul-"));
  let server: RunningProgram | undefined;
  let disk: DiskTarget | undefined;
  const stop = async (): Promise<void> => {
    await disk?.close();
    await server?.stop();
    await rm(folder, { recursive: true, force: true });
  };
  const close = async (): Promise<void> => {
    await stop();
    await file.close();
  };
  try {
    if (format === "vmdk") expectVmdkName(file);
    // both formats hold whole sectors only
    await runProgram(
      "qemu-img",
      ["create", "-q", "-f", format, file.path, String(Math.ceil(size / 512) * 512)],
      signal,
    );
    const socket = join(folder, "nbd.sock");
    server = startProgram("qemu-nbd", [
      "-f",
      format,
      "-k",
      socket,
      "-x",
      "disk",
      "-t",
      "--discard=unmap",
      file.path,
    ]);
    const uri = `nbd+unix:///disk?socket=${encodeURIComponent(socket)}`;
    disk = await whenServed(server, (until) => openNbdTarget(parseNbdUri(uri), {}, until), signal);
  } catch (error) {
    await close();
    throw error;
  }
  const opened = disk;
  const finish = async (): Promise<void> => {
    await opened.flush(signal);
    await stop();
    if (format === "vmdk") await renameVmdk(file);
    await file.publish();
  };
  return { disk: freshDisk(opened, path), finish, close };
}

/** A new image reads as zeros wherever nothing was written. */
function freshDisk(disk: DiskTarget, path: string): DiskTarget {
  return {
    name: path,
    size: disk.size,
    blockSize: disk.blockSize,
    zeroed: true,
    write: (offset, bytes, signal) => disk.write(offset, bytes, signal),
    zero: (offset, length, signal) => disk.zero(offset, length, signal),
    flush: (signal) => disk.flush(signal),
    close: () => disk.close(),
  };
}
