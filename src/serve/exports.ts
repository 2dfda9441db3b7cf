import { MiB } from "../bytes/size.ts";
import type { RetryPolicy } from "../flow/retry.ts";
import type { ServedDisk } from "../nbd/server/served-disk.ts";
import type { Manifest, ManifestDisk } from "../repository/manifest.ts";
import type { ReadTools } from "../repository/read-tools.ts";
import { GenerationDisk } from "./generation-disk.ts";
import { OpenedChunks } from "./opened-chunks.ts";

/** Disks of a generation, ready to be served under their names. */
export interface Exports {
  readonly disks: ReadonlyMap<string, ServedDisk>;
  /** After the last request. */
  close(): Promise<void>;
}

/**
 * Trouble of the store is sat out for a minute, on top of what the store itself does: clients wait as long as they are
 * not answered, and most of what troubles a store is over by then.
 */
const SERVE_RETRY: RetryPolicy = { attemptsMax: 30, baseMs: 200, waitMaxMs: 5000, budgetMs: 60_000 };

/** Most bytes fetched ahead of one reader, when memory allows. */
const AHEAD_MAX = 16 * MiB;

/**
 * Opens disks of a generation, which share the memory for chunks.
 *
 * @param cacheBytes most bytes of chunks kept in memory while nobody reads them.
 * @throws as `GenerationDisk.open`.
 */
export async function openExports(
  tools: ReadTools,
  manifest: Manifest,
  disks: readonly ManifestDisk[],
  cacheBytes: number,
  signal: AbortSignal,
): Promise<Exports> {
  const { chunkSize } = tools.repository.config;
  const chunks = new OpenedChunks(tools, { cacheBytes, chunkSize, retry: SERVE_RETRY });
  // several readers must not drive out what was fetched ahead for each other
  const options = { aheadBytes: Math.min(AHEAD_MAX, cacheBytes / 16), retry: SERVE_RETRY };
  const opened = await Promise.all(
    disks.map((disk) => GenerationDisk.open(tools.repository, manifest, disk, chunks, options, signal)),
  );
  return {
    disks: new Map(disks.map(({ name }, index) => [name, opened[index]!])),
    close: async () => {
      await Promise.all(opened.map((disk) => disk.close()));
    },
  };
}
