import { MiB } from "../bytes/size.ts";
import { mkdir, stat } from "node:fs/promises";
import { join } from "node:path";
import type { RetryPolicy } from "../flow/retry.ts";
import type { ServedDisk } from "../nbd/server/served-disk.ts";
import type { Manifest, ManifestDisk } from "../repository/manifest.ts";
import type { ReadTools } from "../repository/read-tools.ts";
import { BootProfile } from "./boot-profile.ts";
import type { DiskCache } from "./disk-cache.ts";
import { GenerationDisk } from "./generation-disk.ts";
import { IN_MOTION_BYTES, OpenedChunks } from "./opened-chunks.ts";
import { OverlayDisk } from "./overlay-disk.ts";
import { OverlayFile } from "./overlay-file.ts";

/** Disks of a generation, ready to be served under their names. */
export interface Exports {
  readonly disks: ReadonlyMap<string, ServedDisk>;
  /** What was fetched for the disks until now: bytes of chunks, as they are stored. */
  bytesFetched(): number;
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

/** So much of the memory for chunks may hold what an earlier serve's clients have read, and this one's have not yet. */
const PREFETCHED_SHARE = 4;

export interface ExportOptions {
  /** Memory for chunks, bytes; the disks share it. Less than 128 MiB: half of it, and 64 MiB. */
  readonly cacheBytes: number;
  /**
   * With it the disks can be written: the overlay's file for a single disk; a folder, or what is to become one, for
   * several, each with a file of its name.
   */
  readonly overlay?: string;
  /** With it, what is read is recorded for the next serve of the source, and read ahead by what the last one recorded. */
  readonly profile?: { readonly say: (message: string) => void };
  /** With it, what is fetched is kept there too; the caller's. */
  readonly disk?: DiskCache;
}

/**
 * Opens disks of a generation.
 *
 * @throws as `GenerationDisk.open` and `OverlayFile.open`.
 */
export async function openExports(
  tools: ReadTools,
  manifest: Manifest,
  disks: readonly ManifestDisk[],
  { cacheBytes, overlay, profile: profiled, disk: cache }: ExportOptions,
  signal: AbortSignal,
): Promise<Exports> {
  const { chunkSize, repository } = tools.repository.config;
  const keptBytes = Math.max(cacheBytes - IN_MOTION_BYTES, cacheBytes / 2);
  const chunks = new OpenedChunks(tools, { keptBytes, chunkSize, retry: SERVE_RETRY, disk: cache });
  // several readers must not drive out what was fetched ahead for each other
  const options = { aheadBytes: Math.min(AHEAD_MAX, keptBytes / 16), retry: SERVE_RETRY };
  let note: BootProfile["note"] = () => undefined;
  const bases = new Map<string, GenerationDisk>();
  const served = new Map<string, ServedDisk>();
  const closing: (() => Promise<void>)[] = [];
  const close = async (): Promise<void> => {
    const ends = await Promise.allSettled(closing.map((end) => end()));
    for (const end of ends) if (end.status === "rejected") throw end.reason;
  };
  try {
    const folder = overlay !== undefined && (disks.length > 1 || (await isFolder(overlay)));
    if (folder) await mkdir(overlay, { recursive: true });
    for (const disk of disks) {
      const onRead = (chunk: number): void => note(disk.name, chunk);
      const base = await GenerationDisk.open(
        tools.repository,
        manifest,
        disk,
        chunks,
        { ...options, onRead },
        signal,
      );
      closing.push(() => base.close());
      bases.set(disk.name, base);
      if (overlay === undefined) {
        served.set(disk.name, base);
        continue;
      }
      const identity = { repository, generation: manifest.generation, disk: disk.name, size: disk.size };
      const path = folder ? join(overlay, `${disk.name}.overlay`) : overlay;
      const file = await OverlayFile.open(path, identity, signal);
      closing.push(() => file.close());
      served.set(disk.name, new OverlayDisk(base, file));
    }
  } catch (error) {
    await close().catch(() => undefined); // what came first is what is told
    throw error;
  }
  const bytesFetched = (): number => chunks.bytesFetched;
  if (profiled === undefined) return { disks: served, bytesFetched, close };
  const window = Math.floor(keptBytes / PREFETCHED_SHARE / chunkSize);
  const begun = new BootProfile(tools.repository, manifest, bases, { ...profiled, window });
  note = begun.note.bind(begun);
  // while the disks can still be asked
  return { disks: served, bytesFetched, close: () => begun.close().then(close) };
}

async function isFolder(path: string): Promise<boolean> {
  return await stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  );
}
