import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { ServedDisk } from "../nbd/server/served-disk.ts";
import { NbdServer } from "../nbd/server/server.ts";
import type { Manifest, ManifestDisk } from "../repository/manifest.ts";
import type { ReadTools } from "../repository/read-tools.ts";
import { openExports } from "./exports.ts";

/** A disk that can be written, and says where it holds nothing: one with an overlay. */
export type WritableDisk = ServedDisk & Required<Pick<ServedDisk, "extents" | "write" | "zero" | "flush">>;

/** Disks of a generation that are served to programs of ours, for a time, and can be written. */
export interface Throwaway<Disk extends ServedDisk> {
  /** By name, as the server offers them. */
  readonly disks: ReadonlyMap<string, Disk>;
  readonly server: NbdServer;
  /** Of the server. */
  readonly socket: string;
  /** The server offers one more disk from now on, under this name. It stays the caller's. */
  offer(name: string, disk: ServedDisk): void;
  /** What was fetched until now: bytes of chunks, as they are stored. */
  bytesFetched(): number;
}

export interface ThrowawayWish<Disk extends ServedDisk> {
  /** Of the caller's own, empty: for the socket, and what is written. */
  readonly folder: string;
  /** Most bytes of chunks that are kept in memory. */
  readonly cacheBytes: number;
  /** What the server offers in a disk's place. */
  readonly wrap: (disk: WritableDisk) => Disk;
}

/**
 * Serves disks of a generation on a private socket for as long as `work` takes. What is written to them lies in the folder,
 * which the caller removes.
 *
 * @throws as `openExports`, and what `work` throws.
 */
export async function withThrowaway<Disk extends ServedDisk>(
  tools: ReadTools,
  manifest: Manifest,
  disks: readonly ManifestDisk[],
  { folder, cacheBytes, wrap }: ThrowawayWish<Disk>,
  signal: AbortSignal,
  work: (throwaway: Throwaway<Disk>) => Promise<void>,
): Promise<void> {
  const overlay = join(folder, "overlay");
  await mkdir(overlay);
  const exports = await openExports(tools, manifest, disks, { cacheBytes, overlay }, signal);
  try {
    // each with its overlay, by what was asked for
    const wrapped = new Map([...exports.disks].map(([name, disk]) => [name, wrap(disk as WritableDisk)]));
    const offered = new Map<string, ServedDisk>(wrapped);
    const socket = join(folder, "nbd.sock");
    const server = await NbdServer.listen(offered, { path: socket });
    try {
      await work({
        disks: wrapped,
        server,
        socket,
        offer: (name, disk) => void offered.set(name, disk),
        bytesFetched: exports.bytesFetched,
      });
    } finally {
      await server.close();
    }
  } finally {
    await exports.close();
  }
}
