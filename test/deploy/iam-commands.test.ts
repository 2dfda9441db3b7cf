import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { openRepository } from "../../src/repository/config.ts";
import { openStore } from "../../src/store/open.ts";
import type { PruneReport } from "../../src/upkeep/prune/prune-report.ts";
import { backUpFile } from "../support/exported-images.ts";
import { temporaryFolder } from "../support/folder.ts";
import { compareFiles, makeImage, patchImage } from "../support/images.ts";
import { minioClient, startMinio } from "../support/minio.ts";
import { runPrune } from "../support/prunes.ts";
import {
  cacheEnvironment,
  keysUnder,
  objectsOf,
  programFor,
  type TestRepository,
} from "../support/repositories.ts";
import { iamPolicy, limitedTo } from "../support/s3-access.ts";
import type { S3Server } from "../support/s3-process.ts";

vi.setConfig({ testTimeout: 120_000 });

const REFUSED = 12;
const never = new AbortController().signal;

let minio: S3Server;

beforeAll(async () => {
  minio = await startMinio();
  await minioClient(minio).makeBucket("commands", minio.region);
  await minioClient(minio).makeBucket("locked", minio.region, { ObjectLocking: true });
});
afterAll(() => minio.stop());

/** A prefix, and the program on it as run by whoever has these policies of `deploy/iam`. */
async function place(bucket: string): Promise<{
  prefix: string;
  as: (...policies: string[]) => Promise<TestRepository>;
}> {
  const prefix = `vms-${randomBytes(3).toString("hex")}`;
  const cache = await cacheEnvironment();
  const as = async (...names: string[]): Promise<TestRepository> => {
    const policies = await Promise.all(names.map((name) => iamPolicy(name, bucket, prefix)));
    const env = { ...cache, ...(await limitedTo(minio, policies)) };
    return programFor(minio.location(bucket, prefix), env, () => objectsOf(minio, bucket, `${prefix}/`));
  };
  return { prefix, as };
}

async function image(seed: number): Promise<string> {
  const path = join(await temporaryFolder(), "web.raw");
  await makeImage(path, { size: 4 * MiB, seed, parts: [{ kind: "random", length: 3 * MiB }] });
  return path;
}

/**
 * As `blockhaul prune` with these credentials, twice, but without a grace: the second one deletes what the first has
 * condemned. Thin packs are rewritten.
 */
async function pruneTwice(repository: TestRepository): Promise<PruneReport[]> {
  for (const [name, value] of Object.entries(repository.env)) vi.stubEnv(name, value);
  const store = await openStore(repository.location);
  try {
    const opened = await openRepository(store, never);
    const rewrite = { maxUnused: 0, maxRepackBytes: Infinity };
    const reports: PruneReport[] = [];
    for (let round = 0; round < 2; round++) {
      await delay(1100); // S3 dates objects by the second
      reports.push(await runPrune(opened, { graceMs: 0, rewrite }));
    }
    return reports;
  } finally {
    store.close();
    vi.unstubAllEnvs();
  }
}

async function expectRefused(repository: TestRepository, ...args: string[]): Promise<void> {
  const before = await repository.objects();
  const { code, stderr } = await repository.run(...args);
  expect(stderr).toMatch(/permission|may not|refuse|denied/i);
  expect(code, `${args.join(" ")}: ${stderr}`).toBe(REFUSED);
  expect(await repository.objects()).toEqual(before);
}

test("each does its own work, and not the others'", async () => {
  const { as } = await place("commands");
  const [owner, writer, restorer, scrubber, maintainer] = [
    await as("owner"),
    await as("writer"),
    await as("restorer"),
    await as("scrubber"),
    await as("maintainer"),
  ];
  await expectRefused(writer, "init");
  expect(await owner.run("init")).toMatchObject({ code: 0 });

  const disk = await image(1);
  const first = await backUpFile(writer, disk);
  await patchImage(disk, [{ offset: 0, length: MiB, seed: 2 }]);
  const second = await backUpFile(writer, disk);
  expect(second.parent).toBe(first.generation);
  await expectRefused(writer, "forget", first.generation);

  const restored = join(await temporaryFolder(), "restored.raw");
  expect(await restorer.run("restore", "web", "--to", restored)).toMatchObject({ code: 0, stderr: "" });
  expect(await compareFiles(disk, restored)).toBeUndefined();
  const runs = (await keysUnder(restorer, "runs/web/")).filter((key) => key.endsWith(".end.json"));
  expect(runs, "the restore's record too").toHaveLength(3);
  await expectRefused(restorer, "forget", first.generation);

  expect(await scrubber.run("verify", "--keyless")).toMatchObject({ code: 0 });
  await expectRefused(scrubber, "hold", first.generation);

  expect(await maintainer.run("hold", first.generation)).toMatchObject({ code: 0 });
  expect(await maintainer.run("release", first.generation)).toMatchObject({ code: 0 });
  expect(await maintainer.run("forget", "--keep-last", "1")).toMatchObject({ code: 0 });
  expect(await maintainer.run("restore-generation", first.generation)).toMatchObject({ code: 0 });
  expect(await maintainer.run("forget", "--keep-last", "1")).toMatchObject({ code: 0 });
  expect(await maintainer.run("verify", "--read-data=50%")).toMatchObject({ code: 0, stderr: "" });
  expect(await keysUnder(maintainer, "checked/")).toHaveLength(1);
  expect(await maintainer.run("prune")).toMatchObject({ code: 0 });
  expect(await maintainer.run("repair")).toMatchObject({ code: 0 });
});

test("the maintainer rewrites, condemns and deletes, and a restore finds all that is left", async () => {
  const { as } = await place("commands");
  await (await as("owner")).run("init");
  const [writer, maintainer] = [await as("writer"), await as("maintainer")];
  const disk = await image(3);
  const { generation } = await backUpFile(writer, disk);
  await patchImage(disk, [{ offset: 0, length: 2 * MiB, seed: 4 }]);
  await backUpFile(writer, disk, "--full");
  expect(await maintainer.run("forget", generation)).toMatchObject({ code: 0 });
  const [first, second] = await pruneTwice(maintainer);
  expect(first).toMatchObject({ rewritten: { packs: 1, forwards: 1 }, condemned: { layers: 1 } });
  expect(second).toMatchObject({ deleted: { packs: 1, layers: 1 } });
  const restored = join(await temporaryFolder(), "restored.raw");
  expect(await (await as("restorer")).run("restore", "web", "--to", restored)).toMatchObject({ code: 0 });
  expect(await compareFiles(disk, restored)).toBeUndefined();
});

test("damage is recorded by the maintainer, and only told by who may only read", async () => {
  const { as, prefix } = await place("commands");
  await (await as("owner")).run("init");
  await backUpFile(await as("writer"), await image(5));
  const [scrubber, maintainer] = [await as("scrubber"), await as("maintainer")];
  const [pack] = await keysUnder(maintainer, "packs/");
  await minioClient(minio).removeObject("commands", `${prefix}/${pack!}`);
  expect((await scrubber.run("verify")).code).toBe(13);
  expect(await keysUnder(maintainer, "damaged/")).toEqual([]);
  expect((await maintainer.run("verify")).code).toBe(13);
  expect(await keysUnder(maintainer, "damaged/")).not.toEqual([]);
});

test("an encrypted repository's passwords are the owner's affair", async () => {
  const { as } = await place("commands");
  const password = { BLOCKHAUL_PASSWORD: "correct horse", BLOCKHAUL_NEW_PASSWORD: "battery staple" };
  const having = async (...names: string[]): Promise<TestRepository> => {
    const { location, env, objects } = await as(...names);
    return programFor(location, { ...env, ...password }, objects);
  };
  const owner = await having("owner");
  expect(await owner.run("init", "--encrypt")).toMatchObject({ code: 0 });
  const { added } = await owner.json<{ added: string }>("key", "add");
  await expectRefused(await having("maintainer"), "key", "remove", added);
  expect(await owner.run("key", "remove", added)).toMatchObject({ code: 0 });
});

test("Object Lock needs its own policy besides, and takes the deletion from the maintainer", async () => {
  const { as } = await place("locked");
  const init = ["init", "--object-lock", "governance", "--retain", "2d"];
  await expectRefused(await as("owner"), ...init);
  expect(await (await as("owner", "object-lock")).run(...init)).toMatchObject({ code: 0 });
  const disk = await image(7);
  await expect(backUpFile(await as("writer"), disk)).rejects.toThrow(/exited with 12/);
  const writer = await as("writer", "object-lock");
  await backUpFile(writer, disk);
  const { generation } = await backUpFile(writer, disk);
  const maintainer = await as("maintainer", "object-lock");
  expect((await maintainer.run("forget", generation)).code).toBe(11);
  expect(await maintainer.run("forget", "--keep-last", "1")).toMatchObject({ code: 0 });
  expect(await keysUnder(maintainer, "generations/")).toHaveLength(2);
  expect(await maintainer.run("prune")).toMatchObject({ code: 0 });
});
