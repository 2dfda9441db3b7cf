import { formatSize } from "../bytes/size.ts";
import { forecastScratch, freeIn, scratchSizeOf } from "../qemu/scratch.ts";
import type { Watched } from "./watch.ts";

/** What a run may take in its scratch folder, where libvirt makes the images. */
export interface ScratchWish {
  readonly scratchDir: string;
  /** Bytes; undefined: as much as it could ever need, if there is so much. */
  readonly scratchSizeMax?: number | undefined;
  warn(message: string): void;
}

/** @throws AppError E_SCRATCH_SIZE (usage), E_SCRATCH_SPACE (full). */
export async function planScratch(
  disks: readonly { readonly size: number }[],
  { scratchDir, scratchSizeMax, warn }: ScratchWish,
): Promise<Pick<Watched, "scratchMax" | "scratchNeed">> {
  const sizes = disks.map(({ size }) => size);
  const shares = forecastScratch(scratchDir, sizes, await freeIn(scratchDir), scratchSizeMax);
  const scratchNeed = sizes.reduce((sum, size) => sum + scratchSizeOf(size), 0);
  if (shares.every(({ threshold }) => threshold === undefined)) return { scratchMax: undefined, scratchNeed };
  if (scratchSizeMax === undefined) {
    const room = formatSize(shares.reduce((sum, { bytes }) => sum + bytes, 0));
    warn(
      `The scratch folder ${scratchDir} has room for ${room}: a backup during which the guest writes more ends`,
    );
  }
  return { scratchMax: shares.reduce((sum, { threshold }) => sum + threshold!, 0), scratchNeed };
}
