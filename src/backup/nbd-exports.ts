import type { DiskSource } from "../disk/disk.ts";
import { openNbdSource } from "../nbd/source.ts";
import type { NbdAddress } from "../nbd/uri.ts";
import { HeldStillSource, type HeldStill } from "./held-still.ts";
import type { BackupSource } from "./source.ts";

export interface ExportedDisk {
  readonly name: string;
  readonly address: NbdAddress;
  /** Opened with this dirty bitmap, so that unchanged extents are known. */
  readonly bitmap: string | undefined;
}

/**
 * Opens NBD exports as disks by name. Either all open, or none stays open.
 *
 * @param connections most a disk; undefined: the client's default.
 */
export async function openExports(
  exported: readonly ExportedDisk[],
  connections: number | undefined,
  signal: AbortSignal,
): Promise<Map<string, DiskSource>> {
  const disks = new Map<string, DiskSource>();
  try {
    for (const { name, address, bitmap } of exported) {
      const options = { ...(bitmap && { bitmap }), ...(connections && { connections }) };
      disks.set(name, await openNbdSource(address, options, signal));
    }
    return disks;
  } catch (error) {
    await closeExports(disks);
    throw error;
  }
}

/** Never throws: what cannot be closed is gone already. */
export async function closeExports(disks: ReadonlyMap<string, DiskSource>): Promise<void> {
  await Promise.allSettled([...disks.values()].map((disk) => disk.close()));
}

/**
 * NBD exports that somebody else holds still (QEMU with a fleecing job, `qemu-nbd -r` on an idle image).
 *
 * @param connections as in `openExports`.
 */
export function nbdExports(
  wish: Omit<HeldStill, "diskNames" | "open">,
  exported: readonly Omit<ExportedDisk, "bitmap">[],
  connections: number | undefined,
): BackupSource {
  return new HeldStillSource({
    ...wish,
    diskNames: exported.map(({ name }) => name),
    open: async (bitmapOf, signal) => {
      const wanted = exported.map((disk) => ({ ...disk, bitmap: bitmapOf(disk.name) }));
      const disks = await openExports(wanted, connections, signal);
      return {
        disks,
        consistency: "unknown",
        assertAlive: () => Promise.resolve(),
        close: () => closeExports(disks),
      };
    },
  });
}
