import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { DiskSource } from "../disk/disk.ts";
import { startLeashed } from "../flow/programs.ts";
import { openNbdSource } from "../nbd/source.ts";
import { unixAddress } from "../nbd/uri.ts";
import type { SourceFormat } from "./formats.ts";
import { imageError } from "./inspect.ts";
import { whenServed } from "./served.ts";

/** More clients than we are. */
const CLIENTS_MAX = 16;

export interface ServedImage {
  readonly disk: DiskSource;
  /** Rejects when the server has ended before it was told to: then the image was anybody's to change. Never resolves. */
  readonly died: Promise<never>;
  /** Ends the server, and with it the lock on the image. Never throws. */
  close(): Promise<void>;
}

export interface ServeWish {
  /** Absolute. */
  readonly path: string;
  readonly format: SourceFormat;
  /** Its bitmap that tells what is unchanged. */
  readonly bitmap: string | undefined;
  /** NBD connections; undefined: the client's default. */
  readonly connections: number | undefined;
}

/**
 * Opens an image read-only through a qemu-nbd of our own. As long as that runs nobody can open the image for writing: QEMU
 * locks it. It ends with this process, even if that is killed.
 *
 * @throws AppError E_IMAGE_IN_USE, E_IMAGE (source): also when the bitmap is not there, or cannot be relied on.
 */
export async function serveImage(
  { path, format, bitmap, connections }: ServeWish,
  signal: AbortSignal,
): Promise<ServedImage> {
  const folder = await mkdtemp(join(tmpdir(), "blockhaul-"));
  const socket = join(folder, "nbd.sock");
  const server = startLeashed("qemu-nbd", [
    "--read-only",
    "--persistent",
    `--shared=${CLIENTS_MAX}`,
    `--socket=${socket}`,
    "--export-name=disk",
    `--format=${format}`,
    ...(bitmap === undefined ? [] : [`--bitmap=${bitmap}`]),
    path,
  ]);
  let disk: DiskSource | undefined;
  const close = async (): Promise<void> => {
    await disk?.close().catch(() => undefined);
    await server.stop();
    await rm(folder, { recursive: true, force: true }).catch(() => undefined);
  };
  try {
    const address = { ...unixAddress(socket, "disk"), uri: path }; // what errors name is the image
    const options = { ...(bitmap && { bitmap }), ...(connections && { connections }) };
    disk = await whenServed(server, (until) => openNbdSource(address, options, until), signal);
    return { disk, died: server.died, close };
  } catch (error) {
    await close();
    throw imageError(path, error);
  }
}
