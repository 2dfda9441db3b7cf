import type { LeaseHolder } from "../repository/leases.ts";
import type { DedupScope } from "../repository/dedup.ts";
import type { Manifest } from "../repository/manifest.ts";
import type { ReadTools } from "../repository/read-tools.ts";
import { requestsSince } from "../store/request-counts.ts";
import type { RequestCounts } from "../store/store.ts";
import type { ChunkStats } from "./counts.ts";
import type { GuestPause } from "./point-in-time.ts";
import type { BackupSource } from "./source.ts";

/** Everything a backup needs to know; made by the command line from flags, by others from their own settings. */
export interface BackupRequest extends ReadTools {
  readonly source: string;
  /**
   * Connects to the source. Called once, when the run holds its lease.
   * @param run the run's id, which names what it leaves in the source while it lasts.
   * @param purpose "look": nothing may be changed there, not even what earlier runs left behind.
   */
  readonly connect: (run: string, purpose: "backup" | "look", signal: AbortSignal) => Promise<BackupSource>;
  readonly tags: Readonly<Record<string, string>>;
  readonly dedup: { readonly scope: DedupScope; readonly cacheDir: string };
  /** Who we are, for the lease and the run's records. */
  readonly holder: LeaseHolder;
  readonly isGone: (holder: LeaseHolder) => boolean;
  readonly writer: string;
  readonly warn: (message: string) => void;
  readonly progress: (state: BackupProgress) => void;
  /** Of the whole process, bytes. */
  readonly peakRssBytes: () => number;
  /** What others sent over the same store before; none unless given. */
  readonly requestsBefore?: RequestCounts;
}

/** Requests of this run. */
export function requestsOf({ repository, requestsBefore }: BackupRequest): RequestCounts {
  return requestsSince(requestsBefore ?? {}, repository.store.requests());
}

export interface BackupProgress {
  readonly disk: string;
  /** Bytes of the disk that are behind us, and its size. */
  readonly position: number;
  readonly size: number;
  readonly stats: Readonly<ChunkStats>;
}

export interface RunStats extends ChunkStats {
  readonly seconds: number;
  /** Layers, index objects and the packs' directories; not the manifest. */
  readonly metadataBytes: number;
  /** Sent by the whole run, by operation. */
  readonly requests: Readonly<Record<string, number>>;
  readonly peakRssBytes: number;
}

export interface BackupReport {
  readonly manifest: Manifest;
  readonly stats: RunStats;
  /** Absent for a source that has no guest. */
  readonly guest: GuestPause | undefined;
}

/** Which way a disk would go: what `--dry-run` tells. */
export interface DryRun {
  readonly name: string;
  readonly kind: Manifest["kind"];
  readonly reason: string;
  readonly size: number;
}
