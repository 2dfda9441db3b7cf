import { randomUUID } from "node:crypto";
import { mkdir, mkdtemp, rename, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import type { ChunkWorkers } from "../../src/chunk/workers.ts";
import { exitCodeOf } from "../../src/cli/exit-codes.ts";
import { AppError } from "../../src/errors.ts";
import { createRepository } from "../../src/repository/config.ts";
import { restoreDisk } from "../../src/restore/restore-disk.ts";
import { DirectoryStore } from "../../src/store/directory.ts";
import { openStore } from "../../src/store/open.ts";
import { Backups, startWorkers } from "../support/backups.ts";
import { FaultyStore, type Fault, type FaultyOperation } from "../support/faulty-store.ts";
import { HookedStore } from "../support/hooked-store.ts";
import { memoryRepository } from "../support/memory-repository.ts";
import { MemoryStore } from "../support/memory-store.ts";
import { startRestartableMinio, type RestartableMinio } from "../support/restartable-minio.ts";
import { noise } from "../support/random-disk.ts";
import { MemoryTarget, ScriptedDisk } from "../support/scripted-disk.ts";

const CHUNK = 64 * 1024;
const never = new AbortController().signal;

let workers: ChunkWorkers;
let folder: string;
beforeAll(async () => {
  workers = await startWorkers(memoryRepository());
  folder = await mkdtemp(join(tmpdir(), "blockhaul-store-faults-"));
});
afterAll(async () => {
  await workers.close();
  await rm(folder, { recursive: true, force: true });
});

/** A disk of noise; the first megabyte is the same for every seed. */
function diskOf(seed: number, size = 2 * MiB + 100): ScriptedDisk {
  const bytes = noise(seed, size);
  noise(1, MiB).copy(bytes);
  return new ScriptedDisk("vda", bytes);
}

/** Two generations of a source in a memory store, the second one a rescan; both are known. */
async function newWorld(): Promise<{ backups: Backups; store: MemoryStore }> {
  const store = new MemoryStore();
  const repository = memoryRepository({ store, packSize: 8 * CHUNK, partSize: CHUNK });
  const backups = Backups.with(repository, join(folder, randomUUID()), workers);
  await backups.backup([diskOf(1)]);
  return { backups, store };
}

/** A dedup cache that knows nothing yet, so that index objects are read. */
function fresh(): { cacheDir: string } {
  return { cacheDir: join(folder, randomUUID()) };
}

/** Each operation of a rescan that has something new, by the key it is about. */
const PLACES: readonly (readonly [FaultyOperation, RegExp])[] = [
  ["now", /^/],
  ["replace", /^leases/],
  ["list", /^leases/],
  ["list", /^generations/],
  ["get", /^generations/],
  ["put", /^runs.*begin/],
  ["listUploads", /^packs/],
  ["list", /^damaged/],
  ["list", /^index/],
  ["get", /^index/],
  ["list", /^condemned/],
  ["getTail", /^layers/],
  ["getTail", /^packs/],
  ["beginUpload", /^packs/],
  ["part", /^packs/],
  ["complete", /^packs/],
  ["put", /^layers/],
  ["put", /^index/],
  ["put", /^generations/],
  ["put", /^runs.*end/],
  ["delete", /^leases/],
];

/** Whatever became of a run with faults: what is committed is exact, and the next run is right. */
async function expectSound(backups: Backups, store: MemoryStore, disk: ScriptedDisk): Promise<void> {
  expect((await backups.verify()).problems).toEqual([]);
  expect(store.uploads.size, "pending uploads").toBeLessThanOrEqual(1); // of one whose abort failed
  for (const key of store.objects.keys()) if (key.startsWith("leases/")) store.objects.delete(key); // as time would
  for (const { disks } of (await backups.generations()).slice(1)) {
    expect((await backups.restore(disks[0]!)).equals(disk.bytes)).toBe(true);
  }
  const { manifest } = await backups.backup([disk]);
  expect((await backups.restore(manifest.disks[0]!)).equals(disk.bytes)).toBe(true);
}

describe.each(PLACES)("%s of %s", (operation, key) => {
  test.each(["before", "after"] as const)("fails once (%s)", async (kind) => {
    const { backups, store } = await newWorld();
    const fault: Fault = { operation, kind, key };
    const faulty = new FaultyStore(store, fault);
    const disk = diskOf(2);
    const outcome: unknown = await backups
      .backup([disk], { ...fresh(), store: faulty })
      .catch((error: unknown) => error);
    faulty.assertAllHit();
    if (outcome instanceof Error) expect(outcome).toMatchObject({ name: "AppError", kind: "unavailable" });
    await expectSound(backups, store, disk);
  });

  test("fails for good", async () => {
    const { backups, store } = await newWorld();
    const faults = Array.from({ length: 200 }, (): Fault => ({ operation, kind: "before", key }));
    const disk = diskOf(2);
    const run = backups.backup([disk], { ...fresh(), store: new FaultyStore(store, ...faults) });
    const outcome: unknown = await run.catch((error: unknown) => error);
    if (outcome instanceof Error) expect(outcome).toMatchObject({ name: "AppError", kind: "unavailable" });
    await expectSound(backups, store, disk);
  });
});

/** What a stopped run does to clean up has its own time limits, and no run to stop it. */
const STOPPABLE = PLACES.filter(([operation, key]) => operation !== "delete" && !key.source.includes("end"));

test.each(STOPPABLE)("%s of %s hangs until the run is stopped", async (operation, key) => {
  const { backups, store } = await newWorld();
  const faulty = new FaultyStore(store, { operation, kind: "hang", key });
  const reason = new AppError("cancelled", "E_INTERRUPTED", "Interrupted");
  const run = new AbortController();
  const watched = new HookedStore(faulty, {
    before: (name, at) => {
      if (name === operation && key.test(at)) setImmediate(() => run.abort(reason));
    },
  });
  const disk = diskOf(2);
  await expect(backups.backup([disk], { ...fresh(), store: watched, run })).rejects.toBe(reason);
  faulty.assertAllHit();
  await expectSound(backups, store, disk);
});

/** A target that lets a test step in at a write. */
class WatchedTarget extends MemoryTarget {
  readonly #onWrite: (offset: number) => Promise<void> | void;

  constructor(size: number, onWrite: (offset: number) => Promise<void> | void) {
    super(size);
    this.#onWrite = onWrite;
  }

  override async write(offset: number, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#onWrite(offset);
    await super.write(offset, bytes, signal);
  }
}

describe("a MinIO that is killed", () => {
  let minio: RestartableMinio;
  beforeAll(async () => {
    minio = await startRestartableMinio();
    Object.assign(process.env, minio.env);
  });
  afterAll(() => minio.stop());

  const SIZE = 20 * MiB;
  const IMPATIENT = { attemptsMax: 2, baseMs: 10, waitMaxMs: 10, budgetMs: 100 };

  async function newBackups(prefix: string): Promise<Backups> {
    const store = await openStore(minio.location(prefix));
    const sizes = { chunkSize: CHUNK, packSize: 6 * MiB, partSize: store.limits.partSizeMin };
    return Backups.with(await createRepository(store, sizes, never), join(folder, prefix), workers);
  }

  /** A disk whose 13th read is the moment. */
  function diskWith(moment: () => Promise<void>): ScriptedDisk {
    const { bytes } = diskOf(3, SIZE);
    return new ScriptedDisk("vda", bytes, {
      onRead: (offset) => (offset === 12 * MiB ? moment() : undefined),
    });
  }

  test("and comes back: the backup rides it out", async () => {
    const backups = await newBackups("ridden-out");
    let restarted: Promise<void> | undefined;
    const disk = diskWith(async () => {
      await minio.kill();
      restarted = minio.start();
    });
    const { manifest } = await backups.backup([disk]);
    await restarted;
    expect((await backups.restore(manifest.disks[0]!)).equals(disk.bytes)).toBe(true);
    expect((await backups.verify()).problems).toEqual([]);
  });

  test("and comes back: the restore rides it out", async () => {
    const backups = await newBackups("restored");
    const disk = diskOf(3, SIZE);
    const { manifest } = await backups.backup([disk]);
    let restarted: Promise<void> | undefined;
    const target = new WatchedTarget(SIZE, async () => {
      if (restarted !== undefined) return;
      restarted = minio.kill().then(() => minio.start());
      await minio.kill();
    });
    await restoreDisk(manifest.disks[0]!, target, backups.tools(), new AbortController(), () => undefined);
    await restarted;
    expect(target.bytes.equals(disk.bytes)).toBe(true);
  });

  test("and stays away: the backup fails with exit code 15, and the next one is right", async () => {
    const backups = await newBackups("failed");
    const disk = diskWith(() => minio.kill());
    const store = await openStore(minio.location("failed"), { retry: IMPATIENT });
    const error: unknown = await backups.backup([disk], { store }).catch((reason: unknown) => reason);
    await minio.start();
    expect(exitCodeOf(error), String(error)).toBe(15);
    expect(await backups.generations()).toEqual([]);
    const isGone = (): boolean => true; // its lease is still there
    const next = diskOf(3, SIZE);
    const { manifest } = await backups.backup([next], { isGone });
    expect((await backups.restore(manifest.disks[0]!)).equals(next.bytes)).toBe(true);
  });

  test("and stays away: the restore fails with exit code 15 and does not say that it is done", async () => {
    const backups = await newBackups("not-restored");
    const { manifest } = await backups.backup([diskOf(3, SIZE)]);
    const target = new WatchedTarget(SIZE, () => minio.kill());
    const tools = backups.tools(await openStore(minio.location("not-restored"), { retry: IMPATIENT }));
    const restoring = restoreDisk(manifest.disks[0]!, target, tools, new AbortController(), () => undefined);
    const error: unknown = await restoring.catch((reason: unknown) => reason);
    await minio.start();
    expect(exitCodeOf(error), String(error)).toBe(15);
    expect(target.flushed).toBe(0);
  });
});

describe("a directory that disappears", () => {
  test("fails the run with a word about it; when it is back, the next run is right", async () => {
    const path = join(folder, "unplugged");
    await mkdir(path);
    const store = new DirectoryStore(path);
    const sizes = { chunkSize: CHUNK, packSize: MiB, partSize: CHUNK };
    const backups = Backups.with(
      await createRepository(store, sizes, never),
      join(folder, "unplugged-cache"),
      workers,
    );
    const { bytes } = diskOf(4, 40 * MiB);
    const disk = new ScriptedDisk("vda", bytes, {
      onRead: async (offset) => {
        if (offset === 30 * MiB) await rename(path, `${path}-away`);
      },
    });
    const error: unknown = await backups.backup([disk]).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(AppError);
    expect(String(error)).toContain(path);
    await rm(path, { recursive: true, force: true });
    await rename(`${path}-away`, path);
    expect(await backups.generations()).toEqual([]);
    const next = new ScriptedDisk("vda", bytes);
    const { manifest } = await backups.backup([next], { isGone: () => true });
    expect((await backups.restore(manifest.disks[0]!)).equals(bytes)).toBe(true);
    expect((await backups.verify()).problems).toEqual([]);
  });
});
