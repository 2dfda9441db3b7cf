import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { extendLocks } from "../../src/repository/object-lock.ts";
import { openRepository } from "../../src/repository/config.ts";
import { openStore } from "../../src/store/open.ts";
import type { PruneReport } from "../../src/upkeep/prune/prune-report.ts";
import { backUpFile } from "../support/exported-images.ts";
import { runPrune } from "../support/prunes.ts";
import { temporaryFolder } from "../support/folder.ts";
import { makeImage } from "../support/images.ts";
import { minioClient, startMinio } from "../support/minio.ts";
import {
  cacheEnvironment,
  keysUnder,
  objectsOf,
  programFor,
  type TestRepository,
} from "../support/repositories.ts";
import type { S3Server } from "../support/s3-process.ts";

vi.setConfig({ testTimeout: 120_000 });

const never = new AbortController().signal;
const BUCKET = "locked";
const DAY_MS = 86_400_000;

let minio: S3Server;

beforeAll(async () => {
  minio = await startMinio();
  await minioClient(minio).makeBucket(BUCKET, "us-east-1", { ObjectLocking: true });
});

afterAll(() => minio.stop());

interface Locked {
  readonly repository: TestRepository;
  readonly prefix: string;
}

/** The program on a prefix of its own; no repository yet. */
async function place(bucket: string): Promise<Locked> {
  const prefix = randomUUID();
  const objects = (): Promise<Map<string, number>> => objectsOf(minio, bucket, `${prefix}/`);
  const environment = { ...minio.env, ...(await cacheEnvironment()) };
  return { repository: programFor(minio.location(bucket, prefix), environment, objects), prefix };
}

async function lockedRepository(days: number, ...more: string[]): Promise<Locked> {
  const made = await place(BUCKET);
  const flags = ["--object-lock", "governance", "--retain", `${days}d`, ...more];
  expect(await made.repository.run("init", ...flags)).toMatchObject({ code: 0 });
  return made;
}

/** By a client that shares no code with ours. @returns days from now, rounded; undefined: not locked. */
async function daysLocked({ prefix }: Locked, key: string): Promise<number | undefined> {
  const found = await minioClient(minio)
    .getObjectRetention(BUCKET, `${prefix}/${key}`)
    .catch((error: unknown) => {
      if ((error as { code?: string }).code === "NoSuchObjectLockConfiguration") return undefined;
      throw error;
    });
  const { retainUntilDate: until } = (found ?? {}) as { retainUntilDate?: string };
  return until === undefined ? undefined : Math.round((Date.parse(until) - Date.now()) / DAY_MS);
}

/** Whoever may end governance locks early can make them shorter. */
async function lockFor(prefix: string, key: string, days: number): Promise<void> {
  await minioClient(minio).putObjectRetention(BUCKET, `${prefix}/${key}`, {
    governanceBypass: true,
    mode: "GOVERNANCE",
    retainUntilDate: new Date(Date.now() + days * DAY_MS).toISOString(),
  } as never);
}

/** Without a grace, so that the second one could delete what the first has condemned. */
async function pruneTwice(repository: TestRepository): Promise<PruneReport[]> {
  Object.assign(process.env, repository.env);
  const store = await openStore(repository.location);
  try {
    const opened = await openRepository(store, never);
    const reports = [];
    for (let round = 0; round < 2; round++) {
      await delay(1100); // S3 dates objects by the second
      reports.push(await runPrune(opened, { graceMs: 0 }));
    }
    return reports;
  } finally {
    store.close();
  }
}

async function image(seed: number): Promise<string> {
  const path = join(await temporaryFolder(), "web.raw");
  await makeImage(path, { size: 3 * MiB, seed, parts: [{ kind: "random", length: 3 * MiB }] });
  return path;
}

describe("a locked repository", () => {
  test("what a restore needs is locked as it is written, and nothing else", async () => {
    const locked = await lockedRepository(30);
    await backUpFile(locked.repository, await image(1));
    const keys = await keysUnder(locked.repository, "");
    for (const key of keys) {
      const needed = /^(?:repository\.json|packs|layers|generations)/.test(key);
      expect(await daysLocked(locked, key), key).toBe(needed ? 30 : undefined);
    }
    expect(new Set(keys.map((key) => key.split("/")[0]))).toEqual(
      new Set(["repository.json", "packs", "layers", "generations", "index", "runs"]),
    );
  });

  test("list says until when; forget leaves it alone, by rules and by name", async () => {
    const locked = await lockedRepository(2);
    const { repository } = locked;
    const web = await image(1);
    const { generation } = await backUpFile(repository, web);
    await backUpFile(repository, web);
    const listed = await repository.json<{ generations: { protectedUntil: string }[] }>("list");
    for (const { protectedUntil } of listed.generations) {
      expect(Math.round((Date.parse(protectedUntil) - Date.now()) / DAY_MS)).toBe(2);
    }
    const day = listed.generations[0]!.protectedUntil.slice(0, 10);
    expect((await repository.run("list")).stdout).toMatch(new RegExp(`PROTECTED UNTIL[^]* ${day} `));
    const { sources } = await repository.json<{
      sources: { keep: { generation: string; reasons: string[] }[]; remove: unknown[] }[];
    }>("forget", "--keep-last", "1");
    expect(sources[0]!.remove).toEqual([]);
    const reasons = sources[0]!.keep.find((kept) => kept.generation === generation)!.reasons;
    expect(reasons).toEqual([expect.stringMatching(/^protected until \d{4}-/)]);
    const byName = await repository.run("forget", generation);
    expect(byName).toMatchObject({ code: 11, stderr: expect.stringContaining("Object Lock") as string });
    expect(await keysUnder(repository, "generations/")).toHaveLength(2);
  });

  test("a pack that is used again is locked anew when half of its time is gone", async () => {
    const locked = await lockedRepository(10);
    const { repository, prefix } = locked;
    await backUpFile(repository, await image(7), "--name", "one");
    const [pack] = await keysUnder(repository, "packs/");
    // as if written some days ago
    await lockFor(prefix, pack!, 8);
    await backUpFile(repository, await image(7), "--name", "two");
    expect(await daysLocked(locked, pack!)).toBe(8); // long enough
    await lockFor(prefix, pack!, 2);
    const { stats } = await backUpFile(repository, await image(7), "--name", "three");
    expect(await daysLocked(locked, pack!)).toBe(10);
    expect(stats.requests).toMatchObject({ PutObjectRetention: 1 });
    expect(await keysUnder(repository, "packs/")).toEqual([pack]);
    Object.assign(process.env, repository.env);
    const store = await openStore(repository.location);
    const opened = await openRepository(store, never);
    expect(await extendLocks(opened, [pack!, "packs/00000000-0000-4000-8000-000000000000"], never)).toBe(0);
    store.close();
  });

  test("prune locks anew what is in use, and leaves what is locked", async () => {
    const locked = await lockedRepository(10);
    const { repository, prefix } = locked;
    const kept = await backUpFile(repository, await image(1), "--name", "kept");
    const [keptPack] = await keysUnder(repository, "packs/");
    await backUpFile(repository, await image(2), "--name", "gone");
    const goneKey = (await keysUnder(repository, "generations/gone/"))[0]!;
    for (const key of [keptPack!, `generations/kept/${kept.generation}.json`]) await lockFor(prefix, key, 2);
    await minioClient(minio).removeObject(BUCKET, `${prefix}/${goneKey}`); // hides it: versions stay
    const pruned = await pruneTwice(repository);
    expect(pruned[0]).toMatchObject({ condemned: { packs: 1, layers: 1 }, locksExtended: 2 });
    expect(pruned[1]).toMatchObject({ deleted: { packs: 0, layers: 0 }, locksExtended: 0 });
    expect(await keysUnder(repository, "packs/")).toHaveLength(2);
    expect(await daysLocked(locked, keptPack!)).toBe(10);
  });

  test("an encrypted one's keys are locked too", async () => {
    const made = await place(BUCKET);
    const env = { ...made.repository.env, BLOCKHAUL_PASSWORD: "correct horse battery" };
    const repository = programFor(made.repository.location, env, made.repository.objects);
    const flags = ["--encrypt", "--object-lock", "compliance", "--retain", "1d"];
    expect(await repository.run("init", ...flags)).toMatchObject({ code: 0 });
    const [key] = await keysUnder(repository, "keys/");
    expect(await daysLocked(made, key!)).toBe(1);
  });
});

describe("no lock to be had", () => {
  test.each([
    ["a bucket without Object Lock", () => minio.createBucket("plain").then(place), "has no Object Lock"],
  ])("%s: exit 2, and nothing is there", async (_, make, words) => {
    const { repository } = await make();
    const { code, stderr } = await repository.run("init", "--object-lock", "governance", "--retain", "30d");
    expect(stderr).toContain(words);
    expect(code).toBe(2);
    expect(await keysUnder(repository, "")).toEqual([]);
  });

  test("a directory: exit 2", async () => {
    const repository = programFor(await temporaryFolder(), await cacheEnvironment());
    const { code, stderr } = await repository.run("init", "--object-lock", "governance", "--retain", "30d");
    expect({ code, stderr }).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("S3 buckets") as string,
    });
  });

  test.each([
    [["--object-lock", "governance"]],
    [["--retain", "30d"]],
    [["--object-lock", "legal-hold", "--retain", "30d"]],
    [["--object-lock", "governance", "--retain", "0d"]],
    [["--object-lock", "governance", "--retain", "4000d"]],
    [["--object-lock", "governance", "--retain", "12h"]],
  ])("%j: exit 2", async (flags) => {
    const { repository } = await place(BUCKET);
    const { code, stderr } = await repository.run("init", ...flags);
    expect({ code, stderr }).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("--retain") as string,
    });
    expect(await keysUnder(repository, "")).toEqual([]);
  });
});
