import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { onTestFinished } from "vitest";
import { HeldStillSource } from "../../src/backup/held-still.ts";
import type { Outcome, PointInTime } from "../../src/backup/point-in-time.ts";
import type { BackupReport, BackupRequest } from "../../src/backup/request.ts";
import { runBackup } from "../../src/backup/run.ts";
import type { BackupSource } from "../../src/backup/source.ts";
import { MiB } from "../../src/bytes/size.ts";
import { ChunkWorkers } from "../../src/chunk/workers.ts";
import type { DiskSource } from "../../src/disk/disk.ts";
import type { Repository } from "../../src/repository/config.ts";
import { loadGenerations } from "../../src/repository/generations.ts";
import type { Manifest, ManifestDisk } from "../../src/repository/manifest.ts";
import { PackDirectories } from "../../src/repository/pack-reader.ts";
import type { ObjectStore } from "../../src/store/store.ts";
import type { ReadTools } from "../../src/repository/read-tools.ts";
import { restoreDisk } from "../../src/restore/restore-disk.ts";
import { verify, type VerifyReport } from "../../src/upkeep/verify.ts";
import { MemoryTarget } from "./scripted-disk.ts";

/** What a test may want to be otherwise in one run. */
export interface RunOptions {
  readonly source?: string;
  readonly full?: boolean;
  readonly bitmap?: string;
  readonly parent?: string;
  readonly scope?: BackupRequest["dedup"]["scope"];
  readonly cacheDir?: string;
  readonly run?: AbortController;
  readonly consistency?: PointInTime["consistency"];
  readonly assertAlive?: PointInTime["assertAlive"];
  readonly onOpen?: (bitmapOf: (disk: string) => string | undefined) => void;
  readonly onClose?: (outcome: Outcome) => void;
  readonly isGone?: BackupRequest["isGone"];
  /** Another view of the same repository: with faults, or with a log. */
  readonly store?: ObjectStore;
}

/** What a test may want to be otherwise in one verify. */
export interface VerifyOptions {
  readonly readPercent?: number;
  readonly manifests?: readonly Manifest[];
  readonly store?: ObjectStore;
  readonly run?: AbortController;
}

/** Runs backups and restores in this process, as the command line does: with real threads and a real dedup cache. */
export class Backups {
  readonly repository: Repository;
  readonly cacheDir: string;
  readonly warnings: string[] = [];
  /** What `PointInTime.close` was told, run by run. */
  readonly closed: Outcome[] = [];
  readonly #workers: ChunkWorkers;

  private constructor(repository: Repository, cacheDir: string, workers: ChunkWorkers) {
    this.repository = repository;
    this.cacheDir = cacheDir;
    this.#workers = workers;
  }

  /** Ended with the test. @param workers shared ones are left alone; without them, two threads are started. */
  static async start(repository: Repository, workers?: ChunkWorkers): Promise<Backups> {
    const cacheDir = await mkdtemp(join(tmpdir(), "blockhaul-cache-"));
    onTestFinished(() => rm(cacheDir, { recursive: true, force: true }));
    if (workers !== undefined) return new Backups(repository, cacheDir, workers);
    const own = await startWorkers(repository);
    onTestFinished(() => own.close());
    return new Backups(repository, cacheDir, own);
  }

  /** Of a repository, cache and threads that somebody else ends. */
  static with(repository: Repository, cacheDir: string, workers: ChunkWorkers): Backups {
    return new Backups(repository, cacheDir, workers);
  }

  /** A new set for each run, as each process has its own cache of directories. */
  tools(store: ObjectStore = this.repository.store): ReadTools {
    const repository = { ...this.repository, store };
    const directories = new PackDirectories(repository, { cacheBytes: MiB });
    return { repository, directories, workers: this.#workers };
  }

  request(disks: readonly DiskSource[], options: RunOptions = {}): BackupRequest {
    return {
      ...this.tools(options.store),
      source: options.source ?? "web",
      connect: () => Promise.resolve(this.#source(disks, options)),
      tags: {},
      dedup: { scope: options.scope ?? "repository", cacheDir: options.cacheDir ?? this.cacheDir },
      holder: { host: "test", pid: 1 },
      isGone: options.isGone ?? ((): boolean => false),
      writer: "test",
      warn: (message) => void this.warnings.push(message),
      progress: () => undefined,
      peakRssBytes: () => 0,
    };
  }

  #source(disks: readonly DiskSource[], options: RunOptions): BackupSource {
    return new HeldStillSource({
      source: options.source ?? "web",
      diskNames: disks.map((disk) => disk.name),
      full: options.full ?? false,
      bitmap: options.bitmap,
      parent: options.parent,
      open: (bitmapOf) => {
        options.onOpen?.(bitmapOf);
        return Promise.resolve({
          disks: new Map(disks.map((disk) => [disk.name, disk])),
          consistency: options.consistency ?? "unknown",
          assertAlive: options.assertAlive ?? ((): Promise<void> => Promise.resolve()),
          close: (outcome) => {
            this.closed.push(outcome);
            options.onClose?.(outcome);
            return Promise.resolve();
          },
        });
      },
    });
  }

  async backup(disks: readonly DiskSource[], options: RunOptions = {}): Promise<BackupReport> {
    return await runBackup(this.request(disks, options), options.run ?? new AbortController());
  }

  /** One disk of a generation, written over garbage. */
  async restore(disk: ManifestDisk): Promise<Buffer> {
    const target = new MemoryTarget(disk.size);
    await restoreDisk(disk, target, this.tools(), new AbortController(), () => undefined);
    return target.bytes;
  }

  async generations(): Promise<Manifest[]> {
    return await loadGenerations(this.repository, undefined, new AbortController().signal);
  }

  /** All generations, every byte unless told otherwise. */
  async verify(options: VerifyOptions = {}): Promise<VerifyReport> {
    const request = {
      manifests: options.manifests ?? (await this.generations()),
      found: [],
      complete: options.manifests === undefined,
      readPercent: options.readPercent ?? 100,
      record: true,
      warn: (message: string) => void this.warnings.push(message),
      progress: () => undefined,
    };
    return await verify(request, this.tools(options.store), options.run ?? new AbortController());
  }
}

export function startWorkers(repository: Repository): Promise<ChunkWorkers> {
  const { config, sealer } = repository;
  return ChunkWorkers.start({ threads: 2, chunkSize: config.chunkSize, keys: sealer.chunkKeys });
}
