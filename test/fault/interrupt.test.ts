import type { ChildProcess } from "node:child_process";
import { hash, randomInt } from "node:crypto";
import { once } from "node:events";
import { watch } from "node:fs";
import { mkdir, mkdtemp, readdir, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { nbdExports } from "../../src/backup/nbd-exports.ts";
import { KiB, MiB } from "../../src/bytes/size.ts";
import type { ChunkWorkers } from "../../src/chunk/workers.ts";
import { isGone, thisProcess } from "../../src/cli/process.ts";
import { parseNbdUri } from "../../src/nbd/uri.ts";
import { createRepository, openRepository, type Repository } from "../../src/repository/config.ts";
import { readIndexObject } from "../../src/repository/index-objects.ts";
import { openNewStore } from "../../src/store/open.ts";
import { runBackup } from "../../src/backup/run.ts";
import { Backups, startWorkers } from "../support/backups.ts";
import { runCli, type CliResult } from "../support/cli.ts";
import { memoryRepository } from "../support/memory-repository.ts";
import { startMinio } from "../support/minio.ts";
import type { NbdProcess } from "../support/nbd-process.ts";
import { startQemuNbd } from "../support/qemu-nbd.ts";
import { noise } from "../support/random-disk.ts";
import { openS3Gate, type GatePoint, type S3Gate } from "../support/s3-gate.ts";
import type { S3Server } from "../support/s3-process.ts";
import { seeded } from "../support/seeded.ts";

const CHUNK = 64 * KiB;
const DISK = 14 * MiB - 512;
const never = new AbortController().signal;

let folder: string;
let image: string;
let content: Buffer;
let disk: NbdProcess;
let minio: S3Server;
let gate: S3Gate;
let bucket: string;
let workers: ChunkWorkers;
let places = 0;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "blockhaul-interrupt-"));
  image = join(folder, "disk.raw");
  content = Buffer.alloc(DISK);
  noise(1, 8 * MiB).copy(content, MiB);
  content.fill("a line of text\n", 9 * MiB, 10 * MiB);
  noise(2, 3 * MiB).copy(content, 10 * MiB + 4096);
  await writeFile(image, content);
  disk = await startQemuNbd(["-r", "-f", "raw", image], { exportName: "web" });
  minio = await startMinio();
  gate = await openS3Gate(minio.endpoint);
  bucket = await minio.createBucket("interrupt");
  workers = await startWorkers(memoryRepository({ chunkSize: CHUNK }));
});
afterAll(async () => {
  await gate.close();
  await minio.stop();
  await disk.stop();
  await workers.close();
  await rm(folder, { recursive: true, force: true });
});

/** A new repository with small packs, and what this process sees of it. */
interface Place {
  readonly location: string;
  /** For the interrupted program: through the gate. */
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly repository: Repository;
  readonly cacheDir: string;
  /** The folder of a directory store. */
  readonly path: string | undefined;
  /** What the disk held when each known generation was made: SHA-256. */
  readonly content: Map<string, string>;
}

async function newPlace(kind: "directory" | "bucket"): Promise<Place> {
  const name = `place-${++places}`;
  const path = kind === "directory" ? join(folder, name) : undefined;
  if (kind === "bucket") Object.assign(process.env, minio.env);
  const direct = path ?? minio.location(bucket, name);
  const store = await openNewStore(direct);
  const partSize = store.limits.partSizeMin === 1 ? 256 * KiB : store.limits.partSizeMin;
  const repository = await createRepository(store, { chunkSize: CHUNK, packSize: 6 * MiB, partSize }, never);
  const location =
    path ??
    minio
      .location(bucket, name)
      .replace(encodeURIComponent(minio.endpoint), encodeURIComponent(gate.endpoint));
  const cacheDir = join(folder, `cache-${places}`);
  const env = { ...minio.env, AWS_ENDPOINT_URL: gate.endpoint };
  return {
    content: new Map(),
    location,
    env,
    repository,
    cacheDir,
    path,
    args: ["-r", location, "--cache-dir", cacheDir],
  };
}

/** What is left behind that should not be. */
async function leftovers({ repository, path }: Place): Promise<string[]> {
  const { store } = repository;
  const found: string[] = [];
  for await (const { key } of store.list("leases/", never)) found.push(key);
  for await (const { key } of store.listUploads("", never)) found.push(`upload of ${key}`);
  if (path !== undefined) found.push(...(await readdir(join(path, ".tmp"))));
  return found;
}

/** Ids of all chunks in packs that an index object lists. */
async function listedIds(repository: Repository): Promise<Set<string>> {
  const ids = new Set<string>();
  for await (const { key } of repository.store.list("index/", never)) {
    for (const directory of await readIndexObject(repository, key, never)) {
      for (let slot = 0; slot < directory.slotCount; slot++) ids.add(directory.idAt(slot).toString("hex"));
    }
  }
  return ids;
}

function idsOf(bytes: Buffer): Set<string> {
  const ids = new Set<string>();
  for (let at = 0; at < bytes.length; at += CHUNK) {
    const chunk = bytes.subarray(at, at + CHUNK);
    if (chunk.some((byte) => byte !== 0)) ids.add(hash("sha256", chunk));
  }
  return ids;
}

/**
 * The run after an interrupted one: succeeds at once, uploads only what is not listed, and is exact, and so is what
 * the interrupted one may have committed. All of it in this process.
 */
async function expectNextRunIsRight(place: Place): Promise<void> {
  const { cacheDir } = place;
  const repository = await openRepository(place.repository.store, never);
  const backups = Backups.with(repository, cacheDir, workers);
  const [listed, committed] = [await listedIds(repository), await backups.generations()];
  const unlisted = [...idsOf(content)].filter((id) => !listed.has(id)).length;
  const request = backups.request([]);
  const wish = { source: "web", full: false, bitmap: undefined, parent: undefined };
  const address = parseNbdUri(disk.uri);
  const report = await runBackup(
    {
      ...request,
      connect: () => Promise.resolve(nbdExports(wish, [{ name: "web", address }], undefined)),
      holder: thisProcess(),
      isGone,
    },
    new AbortController(),
  );
  expect(report.stats.chunksStored).toBe(unlisted);
  expect(report.manifest.sequence).toBe(committed.length + 1);
  expect(backups.warnings).toEqual([]);
  for (const { generation, disks } of (await backups.generations()).slice(-2)) {
    if (!place.content.has(generation)) place.content.set(generation, hash("sha256", content));
    expect(hash("sha256", await backups.restore(disks[0]!)), generation).toBe(place.content.get(generation));
  }
  for await (const { key } of repository.store.list("leases/", never)) expect.fail(`${key} is still there`);
}

async function expectSound({ repository, cacheDir }: Place): Promise<void> {
  expect((await Backups.with(repository, cacheDir, workers).verify()).problems).toEqual([]);
}

/** Runs `backup` in the place and signals it when `point` comes. */
async function interrupted(
  place: Place,
  signal: NodeJS.Signals,
  point: (child: ChildProcess) => Promise<void>,
): Promise<CliResult> {
  const args = ["backup", ...place.args, disk.uri, "--name", "web"];
  return await runCli(args, {
    env: place.env,
    started: (child) => {
      const ended = once(child, "exit");
      void Promise.race([point(child), ended]).then(async () => {
        child.kill(signal);
        if (signal === "SIGINT") {
          // the run knows of it before the held request goes on
          await Promise.race([once(child.stderr!, "data"), ended]);
        } else {
          await ended;
        }
        gate.release();
      });
    },
  });
}

/** Resolves when a file whose path below the repository matches has come into being. */
function appears(path: string, file: RegExp): Promise<void> {
  return new Promise((resolve) => {
    const watcher = watch(path, { recursive: true }, (_, name) => {
      if (name === null || !file.test(name)) return;
      watcher.close();
      resolve();
    });
  });
}

const BUCKET_STAGES: readonly (readonly [string, GatePoint])[] = [
  ["with a claim", { request: /PUT .*\/leases\//, when: "after" }],
  ["before the first pack", { request: /POST .*\/packs\/.*uploads/, when: "before" }],
  ["in the middle of a pack", { request: /PUT .*\/packs\/.*partNumber=1/, when: "before" }],
  ["with a pack that is not complete", { request: /POST .*\/packs\/.*uploadId/, when: "before" }],
  ["with a complete pack", { request: /POST .*\/packs\/.*uploadId/, when: "after" }],
  ["between packs", { request: /POST .*\/packs\/.*uploads/, when: "before", skip: 1 }],
  ["before the layer", { request: /PUT .*\/layers\//, when: "before" }],
  ["before the index", { request: /PUT .*\/index\//, when: "before" }],
  ["after the index", { request: /PUT .*\/index\//, when: "after" }],
  ["before the manifest", { request: /PUT .*\/generations\//, when: "before" }],
  ["after the manifest", { request: /PUT .*\/generations\//, when: "after" }],
  ["before the end record", { request: /PUT .*\/runs\/.*end\.json/, when: "before" }],
];

const DIRECTORY_STAGES: readonly (readonly [string, RegExp])[] = [
  ["with a claim", /^leases\/web\//],
  ["in the middle of a pack", /^\.tmp\/.*packs/],
  ["with a complete pack", /^packs\/./],
  ["at the layer", /^layers\/./],
  ["at the index", /^index\/web\/./],
  ["at the manifest", /^generations\/web\/./],
];

describe("SIGKILL", () => {
  test.each(BUCKET_STAGES)("bucket: %s, the next run is right", async (_, point) => {
    const place = await newPlace("bucket");
    const result = await interrupted(place, "SIGKILL", () => gate.arm(point));
    expect(result.signal, result.stderr).toBe("SIGKILL");
    await expectNextRunIsRight(place);
    await expectSound(place);
  });

  test.each(DIRECTORY_STAGES)("directory: %s, the next run is right", async (_, file) => {
    const place = await newPlace("directory");
    await interrupted(place, "SIGKILL", () => appears(place.path!, file));
    await expectNextRunIsRight(place);
    await expectSound(place);
  });
});

describe("SIGINT", () => {
  test.each(BUCKET_STAGES.filter(([name]) => !/^between|complete|after the index|end record/.test(name)))(
    "bucket: %s, exits with 130 and leaves nothing lying about",
    async (name, point) => {
      const place = await newPlace("bucket");
      const result = await interrupted(place, "SIGINT", () => gate.arm(point));
      expect(result.code, result.stderr).toBe(130);
      expect(result.stderr).toContain("Interrupted");
      expect(await leftovers(place)).toEqual([]);
      const generations = await Backups.with(place.repository, place.cacheDir, workers).generations();
      if (name !== "after the manifest" && name !== "before the manifest") expect(generations).toEqual([]);
      await expectNextRunIsRight(place);
    },
  );

  test.each(DIRECTORY_STAGES.slice(0, 3))(
    "directory: %s, exits with 130 and leaves nothing lying about",
    async (_, file) => {
      const place = await newPlace("directory");
      const result = await interrupted(place, "SIGINT", () => appears(place.path!, file));
      if (result.code !== 0) expect(result.code, result.stderr).toBe(130);
      expect(await leftovers(place)).toEqual([]);
      await expectNextRunIsRight(place);
    },
  );
});

const SEED = Number(process.env["BLOCKHAUL_TEST_SEED"] ?? randomInt(1, 2 ** 31));

test(`interrupted at random times, again and again, the repository stays right (seed ${SEED})`, async () => {
  const random = seeded(SEED);
  for (const kind of ["directory", "bucket"] as const) {
    const place = await newPlace(kind);
    const startedMs = performance.now();
    expect((await interrupted(place, "SIGINT", () => new Promise(() => undefined))).code).toBe(0);
    const lastsMs = performance.now() - startedMs;
    await expectNextRunIsRight(place);
    for (let round = 0; round < 7; round++) {
      noise(random(1000), MiB).copy(content, random(DISK - MiB));
      await writeFile(image, content, { flag: "r+" });
      const signal = random(3) === 0 ? "SIGINT" : "SIGKILL";
      await interrupted(place, signal, () => delay(random(lastsMs)));
      await expectNextRunIsRight(place);
    }
    await expectSound(place);
  }
});

describe("restore", () => {
  test.each(["SIGINT", "SIGKILL"] as const)(
    "%s in the middle leaves no file under the target's name",
    async (signal) => {
      const place = await newPlace("bucket");
      await expectNextRunIsRight(place);
      const targets = join(folder, `targets-${signal}`);
      await mkdir(targets);
      const to = join(targets, "web.raw");
      const reached = gate.arm({ request: /GET .*\/packs\//, when: "before", skip: 4 });
      const result = await runCli(["restore", ...place.args, "web", "--to", to], {
        env: place.env,
        started: (child) => {
          void reached.then(() => child.kill(signal));
        },
      });
      gate.release();
      if (signal === "SIGINT") {
        expect(result.code, result.stderr).toBe(130);
        expect(await readdir(targets)).toEqual([]);
      } else {
        expect(result.signal).toBe("SIGKILL");
        await expect(stat(to)).rejects.toMatchObject({ code: "ENOENT" });
      }
      const again = await runCli(["restore", ...place.args, "web", "--to", to], { env: place.env });
      expect(again.code, again.stderr).toBe(0);
      expect((await stat(to)).size).toBe(DISK);
    },
  );
});
