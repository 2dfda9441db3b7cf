import { messageOf } from "../errors.ts";
import type { Repository } from "../repository/config.ts";
import type { Manifest } from "../repository/manifest.ts";
import { loadProfile, storeProfile, type KnownProfile } from "../repository/profiles.ts";
import { Prefetch, type FetchingDisk } from "./prefetch.ts";
import { ReadRecord } from "./read-record.ts";

/** A disk of which it can be told how much of it is data. */
export interface ProfiledDisk extends FetchingDisk {
  /** Whether more chunks than this hold data. Costs no more the larger the disk is. */
  hasMoreData(chunks: number, signal: AbortSignal): Promise<boolean>;
}

export interface BootProfileOptions {
  /** Most chunks that are fetched ahead of the clients. */
  readonly window: number;
  /** Told why a profile could not be read or kept: the serve goes on without. */
  readonly say: (message: string) => void;
}

/** A profile is the beginning: what is read later says nothing of how a guest boots. Milliseconds since the first read. */
const RECORDED_MS = 10 * 60_000;
/** Fewer chunks are somebody who looked at a partition table. */
const CHUNKS_MIN = 32;
/** A profile that has so many times the chunks stays: it was a boot, and this was not. */
const FEWER_MAX = 4;
/** Up to so many chunks it does not matter whether somebody booted or copied. */
const CHUNKS_SMALL = 256;
/** What keeping it may take when the serve ends, milliseconds. */
const STORE_MS = 10_000;

/**
 * What is read of a source when its generations are served: read ahead by what an earlier serve has recorded, and
 * recorded for the next one. It is advice: nothing fails for want of it.
 */
export class BootProfile {
  readonly #repository: Repository;
  readonly #manifest: Manifest;
  readonly #disks: ReadonlyMap<string, ProfiledDisk>;
  readonly #options: BootProfileOptions;
  readonly #record = new ReadRecord();
  readonly #stop = new AbortController();
  #prefetch: Prefetch | undefined;
  #timer: NodeJS.Timeout | undefined;
  #isStored = false;
  readonly #known: Promise<KnownProfile | undefined>;
  readonly #prefetching: Promise<void>;

  /** Begins to fetch. @param disks by name; the caller's. */
  constructor(
    repository: Repository,
    manifest: Manifest,
    disks: ReadonlyMap<string, ProfiledDisk>,
    options: BootProfileOptions,
  ) {
    this.#repository = repository;
    this.#manifest = manifest;
    this.#disks = disks;
    this.#options = options;
    this.#known = this.#load();
    this.#prefetching = this.#fetch();
  }

  /** Takes note that a chunk with data was read. */
  note(disk: string, chunk: number): void {
    this.#prefetch?.note(disk, chunk);
    if (this.#isStored) return;
    if (this.#record.chunks === 0) {
      this.#timer = setTimeout(() => void this.#store(this.#stop.signal), RECORDED_MS);
      this.#timer.unref();
    }
    this.#record.note(disk, chunk);
  }

  /** Ends fetching, and keeps what was recorded. Never rejects. */
  async close(): Promise<void> {
    clearTimeout(this.#timer);
    this.#stop.abort();
    await this.#prefetching;
    await this.#store(AbortSignal.timeout(STORE_MS));
  }

  async #load(): Promise<KnownProfile | undefined> {
    try {
      return await loadProfile(this.#repository, this.#manifest.source, this.#stop.signal);
    } catch (error) {
      if (!this.#stop.signal.aborted)
        this.#options.say(`There is no profile to read ahead by: ${messageOf(error)}`);
      return undefined;
    }
  }

  async #fetch(): Promise<void> {
    const known = await this.#known;
    if (known?.profile === undefined) return;
    this.#prefetch = new Prefetch(known.profile, this.#disks, this.#options.window);
    await this.#prefetch.run(this.#stop.signal);
  }

  async #store(signal: AbortSignal): Promise<void> {
    if (this.#isStored) return;
    this.#isStored = true;
    const known = await this.#known;
    const { source, generation } = this.#manifest;
    try {
      if (known === undefined || !(await this.#isWorthIt(known, signal))) return;
      const content = { source, generation, ...this.#record.content() };
      await storeProfile(this.#repository, content, known.keys, signal);
    } catch (error) {
      this.#options.say(`What was read is not recorded for the next serve: ${messageOf(error)}`);
    }
  }

  /** Not somebody who looked at a few places, nor one who copied the disks. */
  async #isWorthIt({ profile }: KnownProfile, signal: AbortSignal): Promise<boolean> {
    const { chunks, isFull } = this.#record;
    const before = profile?.reads.reduce((sum, [, , count]) => sum + count, 0) ?? 0;
    if (isFull || chunks < CHUNKS_MIN || chunks * FEWER_MAX < before) return false;
    if (chunks <= CHUNKS_SMALL) return true;
    for (const disk of this.#disks.values()) if (await disk.hasMoreData(2 * chunks, signal)) return true;
    return false;
  }
}
