import { randomUUID } from "node:crypto";
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import type { BucketItem } from "minio";
import { MiB } from "../../src/bytes/size.ts";
import { createRepository } from "../../src/repository/config.ts";
import { openNewStore } from "../../src/store/open.ts";
import { runCli, runJson, type CliOptions, type CliResult } from "./cli.ts";
import { temporaryFolder } from "./folder.ts";
import { minioClient } from "./minio.ts";
import type { S3Server } from "./s3-process.ts";

/** A new repository, and the program with `-r` and a cache folder set for it. */
export interface TestRepository {
  /** As `-r` takes it. */
  readonly location: string;
  /** The environment that the program gets on top of the test's. */
  readonly env: Readonly<Record<string, string>>;
  run(...args: string[]): Promise<CliResult>;
  /** With `--json`. @throws Error unless it exits with 0. */
  json<T>(...args: string[]): Promise<T>;
  /** Sizes of all objects, by key, read without any code of ours. */
  objects(): Promise<Map<string, number>>;
}

/** A repository in a folder of the test's own. */
export async function directoryRepository(...init: string[]): Promise<TestRepository> {
  const location = join(await temporaryFolder(), "repository");
  const repository = programFor(location, await cacheEnvironment());
  await created(repository, init);
  return repository;
}

/** As `directoryRepository`, with packs of 4 MiB instead of 64: `init` has no flag for what only tests need. */
export async function smallPackRepository(): Promise<TestRepository> {
  const location = join(await temporaryFolder(), "repository");
  const store = await openNewStore(location);
  await createRepository(store, { packSize: 4 * MiB, partSize: MiB }, new AbortController().signal);
  store.close();
  return programFor(location, await cacheEnvironment());
}

/** A repository under a new prefix of the bucket. */
export async function bucketRepository(server: S3Server, bucket: string): Promise<TestRepository> {
  const prefix = randomUUID();
  const environment = { ...server.env, ...(await cacheEnvironment()) };
  const repository = programFor(server.location(bucket, prefix), environment, () =>
    objectsOf(server, bucket, `${prefix}/`),
  );
  await created(repository, []);
  return repository;
}

/** The program with this repository for its default, whether that exists or not. */
export function programFor(
  location: string,
  environment: Readonly<Record<string, string>>,
  objects: TestRepository["objects"] = () => filesOf(location),
): TestRepository {
  const env = { ...environment, BLOCKHAUL_REPOSITORY: location };
  const options: CliOptions = { env };
  return {
    location,
    env,
    run: (...args) => runCli(args, options),
    json: <T>(...args: string[]) => runJson<T>(args, options),
    objects,
  };
}

/** A cache folder of the test's own, for `programFor`. */
export async function cacheEnvironment(): Promise<Record<string, string>> {
  return { BLOCKHAUL_CACHE_DIR: await temporaryFolder() };
}

/** The keys of a kind: "packs/", "layers/", "generations/". */
export async function keysUnder(repository: TestRepository, prefix: string): Promise<string[]> {
  return [...(await repository.objects()).keys()].filter((key) => key.startsWith(prefix));
}

export async function bytesOf(repository: TestRepository): Promise<number> {
  return [...(await repository.objects()).values()].reduce((sum, size) => sum + size, 0);
}

async function created(repository: TestRepository, init: readonly string[]): Promise<void> {
  const { code, stderr } = await repository.run("init", ...init);
  if (code !== 0) throw new Error(`init ${repository.location} exited with ${code}: ${stderr}`);
}

/** Sizes of the files below a folder, by path; none where there is no folder. */
async function filesOf(folder: string): Promise<Map<string, number>> {
  const files = new Map<string, number>();
  const entries = await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => []);
  for (const entry of entries.filter((one) => one.isFile())) {
    const path = join(entry.parentPath, entry.name);
    const found = await stat(path).catch(() => undefined); // a backup that runs may have just published it
    if (found !== undefined) files.set(path.slice(folder.length + 1), found.size);
  }
  return files;
}

/** Sizes of the objects whose names begin with `prefix`, by the rest of their names. */
export async function objectsOf(
  server: S3Server,
  bucket: string,
  prefix: string,
): Promise<Map<string, number>> {
  const objects = new Map<string, number>();
  const listed: AsyncIterable<BucketItem> = minioClient(server).listObjectsV2(bucket, prefix, true);
  for await (const item of listed) {
    if (item.name !== undefined) objects.set(item.name.slice(prefix.length), item.size);
  }
  return objects;
}
