import { onTestFinished } from "vitest";
import { MiB } from "../../../src/bytes/size.ts";
import type { RetryPolicy } from "../../../src/flow/retry.ts";
import type { Manifest } from "../../../src/repository/manifest.ts";
import type { DiskCache } from "../../../src/serve/disk-cache.ts";
import { GenerationDisk } from "../../../src/serve/generation-disk.ts";
import { OpenedChunks } from "../../../src/serve/opened-chunks.ts";
import type { ObjectStore } from "../../../src/store/store.ts";
import type { Backups } from "../../support/backups.ts";

/** Trouble of a store is over at once, or not at all. */
export const QUICK: RetryPolicy = { attemptsMax: 3, baseMs: 1, waitMaxMs: 2, budgetMs: 60_000 };

export interface ServedFrom {
  readonly store?: ObjectStore;
  readonly cacheBytes?: number;
  readonly aheadBytes?: number;
  readonly disk?: DiskCache;
  readonly onRead?: (chunk: number) => void;
}

/** The first disk of a generation as it is served, read ahead only when a test asks for it; closed with the test. */
export async function servedDisk(
  backups: Backups,
  manifest: Manifest,
  { store, cacheBytes = 4 * MiB, aheadBytes = 0, disk: cache, onRead }: ServedFrom = {},
): Promise<GenerationDisk> {
  const tools = backups.tools(store);
  const { chunkSize } = tools.repository.config;
  const chunks = new OpenedChunks(tools, { keptBytes: cacheBytes, chunkSize, retry: QUICK, disk: cache });
  const { signal } = new AbortController();
  const disk = await GenerationDisk.open(
    tools.repository,
    manifest,
    manifest.disks[0]!,
    chunks,
    { aheadBytes, retry: QUICK, ...(onRead !== undefined && { onRead }) },
    signal,
  );
  onTestFinished(() => disk.close());
  return disk;
}

export async function readAt(
  disk: Pick<GenerationDisk, "read">,
  offset: number,
  length: number,
  signal: AbortSignal = new AbortController().signal,
): Promise<Buffer> {
  const into = Buffer.alloc(length, 0xee);
  await disk.read(offset, into, signal);
  return into;
}
