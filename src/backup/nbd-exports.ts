import type { DiskSource } from "../disk/disk.ts";
import { openNbdSource } from "../nbd/source.ts";
import type { NbdAddress } from "../nbd/uri.ts";
import type { PointInTime } from "./point-in-time.ts";

export interface ExportedDisk {
  readonly name: string;
  readonly address: NbdAddress;
  /** Opened with this dirty bitmap, so that unchanged extents are known. */
  readonly bitmap: string | undefined;
}

/**
 * NBD exports that somebody else holds still (QEMU with a fleecing job, `qemu-nbd -r` on an idle image).
 * Either all open, or none stays open.
 */
export async function openNbdExports(
  exported: readonly ExportedDisk[],
  connections: number | undefined,
  signal: AbortSignal,
): Promise<PointInTime> {
  const disks = new Map<string, DiskSource>();
  const close = async (): Promise<void> => {
    await Promise.allSettled([...disks.values()].map((disk) => disk.close()));
  };
  try {
    for (const { name, address, bitmap } of exported) {
      const options = { ...(bitmap && { bitmap }), ...(connections && { connections }) };
      disks.set(name, await openNbdSource(address, options, signal));
    }
  } catch (error) {
    await close();
    throw error;
  }
  return { disks, consistency: "unknown", assertAlive: () => Promise.resolve(), close };
}
