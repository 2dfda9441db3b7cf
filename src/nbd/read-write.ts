import { openSourcePool, NbdSource, type NbdSourceOptions } from "./source.ts";
import { expectWritable, NbdTarget } from "./target.ts";
import type { NbdAddress } from "./uri.ts";

/** One export, to be read and written over the same connections. Closing either closes both. */
export interface NbdDisk {
  readonly source: NbdSource;
  readonly target: NbdTarget;
}

/**
 * Opens an export once for both: a server may take one client only, and reads must see what was written.
 *
 * @throws AppError E_NBD_READ_ONLY (usage); else as `openNbdSource`.
 */
export async function openNbdDisk(
  address: NbdAddress,
  options: NbdSourceOptions,
  signal: AbortSignal,
): Promise<NbdDisk> {
  const { pool, bitmap } = await openSourcePool(address, options, signal);
  await expectWritable(address, pool);
  return { source: new NbdSource(address, pool, bitmap), target: new NbdTarget(address, pool, false) };
}
