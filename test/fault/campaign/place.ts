import { hash, randomUUID } from "node:crypto";
import { join } from "node:path";
import { KiB, MiB } from "../../../src/bytes/size.ts";
import { ChunkWorkers } from "../../../src/chunk/workers.ts";
import { messageOf } from "../../../src/errors.ts";
import { createRepository, openRepository, type Repository } from "../../../src/repository/config.ts";
import { loadGeneration } from "../../../src/repository/generations.ts";
import { Prefix } from "../../../src/repository/names.ts";
import { PackDirectories } from "../../../src/repository/pack-reader.ts";
import { restoreDisk } from "../../../src/restore/restore-disk.ts";
import { openNewStore } from "../../../src/store/open.ts";
import { given, firstKey } from "../../support/passwords.ts";
import { collect } from "../../support/collect.ts";
import { MemoryTarget } from "../../support/scripted-disk.ts";
import { CampaignDisk, type Picture } from "./disks.ts";
import { SmallDisk } from "./full.ts";
import { SOURCES, type LifePlan, type SourceName } from "./plan.ts";
import type { World } from "./world.ts";

const CHUNK = 64 * KiB;
/** Of a directory's file system, where mounts are allowed. */
const ROOM = 1024 * MiB;
const never = new AbortController().signal;

/** A generation that was committed, and what it must restore to. */
export interface Committed {
  readonly source: SourceName;
  readonly picture: Picture;
}

/** A repository with small packs, the disks that are backed up into it, and all that is known of both. */
export class Place {
  readonly life: LifePlan;
  readonly world: World;
  readonly folder: string;
  readonly password: string | undefined;
  readonly disks: ReadonlyMap<SourceName, CampaignDisk>;
  readonly committed = new Map<string, Committed>();
  /** Those that were forgotten: they may be brought back until a prune has cleared them away. */
  readonly forgotten = new Map<string, Committed>();
  readonly repository: Repository;
  /** What a directory lies on, where it can be made too small. */
  readonly room: SmallDisk | undefined;
  readonly #prefix: string;
  readonly #workers: ChunkWorkers;

  private constructor(
    life: LifePlan,
    world: World,
    at: { folder: string; prefix: string; room: SmallDisk | undefined; password: string | undefined },
    disks: ReadonlyMap<SourceName, CampaignDisk>,
    repository: Repository,
    workers: ChunkWorkers,
  ) {
    this.life = life;
    this.world = world;
    this.folder = at.folder;
    this.password = at.password;
    this.room = at.room;
    this.disks = disks;
    this.repository = repository;
    this.#prefix = at.prefix;
    this.#workers = workers;
  }

  static async make(
    life: LifePlan,
    world: World,
    folder: string,
    random: (below: number) => number,
  ): Promise<Place> {
    const prefix = randomUUID();
    const room = life.kind === "directory" ? SmallDisk.mount(join(folder, prefix), ROOM) : undefined;
    const location =
      life.kind === "directory"
        ? join(folder, prefix, "repository")
        : world.minio.location(world.bucket, prefix);
    const password = life.encrypted ? `pass-${randomUUID()}` : undefined;
    const store = await openNewStore(location);
    const partSize = store.limits.partSizeMin === 1 ? 256 * KiB : store.limits.partSizeMin;
    const sizes = { chunkSize: CHUNK, packSize: 6 * MiB, partSize };
    await createRepository(store, sizes, never, password === undefined ? undefined : firstKey(password));
    const repository = await openRepository(
      store,
      never,
      password === undefined ? undefined : given(password),
    );
    const disks = new Map<SourceName, CampaignDisk>();
    for (const name of SOURCES)
      disks.set(name, await CampaignDisk.make(name, join(folder, `${name}.raw`), random));
    const { config, sealer } = repository;
    const workers = await ChunkWorkers.start({
      threads: 1,
      chunkSize: config.chunkSize,
      keys: sealer.chunkKeys,
    });
    return new Place(life, world, { folder, prefix, room, password }, disks, repository, workers);
  }

  get describe(): string {
    return `${this.life.encrypted ? "encrypted" : "plain"} ${this.life.kind}`;
  }

  /** As `-r` takes it; a bucket is found at the endpoint that the environment names. */
  get location(): string {
    return this.life.kind === "directory"
      ? join(this.folder, this.#prefix, "repository")
      : `s3://${this.world.bucket}/${this.#prefix}`;
  }

  environment(endpoint: string | undefined): Record<string, string> {
    return {
      ...this.world.minio.env,
      ...(endpoint !== undefined && { AWS_ENDPOINT_URL: endpoint }),
      ...(this.password !== undefined && { BLOCKHAUL_PASSWORD: this.password }),
    };
  }

  /** Of a source, oldest first: ids sort by age. */
  known(source: SourceName): string[] {
    return [...this.committed]
      .filter(([, one]) => one.source === source)
      .map(([id]) => id)
      .sort();
  }

  forget(id: string): void {
    this.forgotten.set(id, this.committed.get(id)!);
    this.committed.delete(id);
  }

  bringBack(id: string): void {
    this.committed.set(id, this.forgotten.get(id)!);
    this.forgotten.delete(id);
  }

  /** Restores a generation in this process, past every proxy. @returns what is wrong with it. */
  async check(id: string): Promise<string | undefined> {
    const { source, picture } = this.committed.get(id)!;
    try {
      const [disk] = (await loadGeneration(this.repository, { source, generation: id }, never)).disks;
      if (disk?.size !== picture.size) return `${id} has ${disk?.size} bytes instead of ${picture.size}`;
      const target = new MemoryTarget(disk.size);
      const directories = new PackDirectories(this.repository, { cacheBytes: MiB });
      const tools = { repository: this.repository, directories, workers: this.#workers };
      await restoreDisk(disk, target, tools, new AbortController(), () => undefined);
      const digest = hash("sha256", target.bytes);
      return digest === picture.digest
        ? undefined
        : `${id} restores to ${digest} instead of ${picture.digest}`;
    } catch (error) {
      return `${id} does not restore: ${messageOf(error)}`;
    }
  }

  /** What should not be there when every source has been backed up in peace. */
  async leftovers(): Promise<string[]> {
    const found: string[] = [];
    for await (const { key } of this.repository.store.list(Prefix.leases, never)) found.push(key);
    return [...found, ...(await this.leftUploads())];
  }

  /** Uploads that are neither complete nor aborted. */
  async leftUploads(): Promise<string[]> {
    if (this.life.kind === "bucket") {
      const pending = await this.world.uploads.pending(`${this.#prefix}/`);
      return pending.map(({ key }) => `upload of ${key}`);
    }
    const uploads = await collect(this.repository.store.listUploads("", never));
    return uploads.map(({ key }) => `upload of ${key}`);
  }

  async close(): Promise<void> {
    for (const disk of this.disks.values()) await disk.stop();
    await this.#workers.close();
    this.repository.store.close();
    this.room?.unmount();
  }
}
