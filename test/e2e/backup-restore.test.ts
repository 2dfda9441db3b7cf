import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { KiB, MiB } from "../../src/bytes/size.ts";
import {
  backUpQcow2,
  backUpRaw,
  createQcow2,
  keepTruth,
  qemuImg,
  qemuIo,
  type GenerationJson,
} from "../support/exported-images.ts";
import { temporaryFolder } from "../support/folder.ts";
import { compareFiles, makeImage, patchImage } from "../support/images.ts";
import { startMinio } from "../support/minio.ts";
import {
  bucketRepository,
  bytesOf,
  directoryRepository,
  keysUnder,
  type TestRepository,
} from "../support/repositories.ts";
import type { S3Server } from "../support/s3-process.ts";

// each test is many runs of the program, which a busy machine may take its time for
vi.setConfig({ testTimeout: 180_000 });

let minio: S3Server;
let bucket: string;

beforeAll(async () => {
  minio = await startMinio();
  bucket = await minio.createBucket("backups");
});

afterAll(() => minio.stop());

const PLACES: readonly { place: string; newRepository: () => Promise<TestRepository> }[] = [
  { place: "a directory", newRepository: () => directoryRepository() },
  { place: "a bucket of MinIO", newRepository: () => bucketRepository(minio, bucket) },
];

const SIZE = 24 * MiB;
const CHUNK = 256 * KiB;

/** Restores every generation into a new file and compares it with what the disk held then. */
async function expectRestored(
  repository: TestRepository,
  truths: ReadonlyMap<string, string>,
): Promise<void> {
  const folder = await temporaryFolder();
  for (const [generation, truth] of truths) {
    const target = join(folder, `${generation}.raw`);
    await repository.json("restore", generation, "--to", target);
    expect(await compareFiles(target, truth), generation).toBeUndefined();
  }
}

describe.each(PLACES)("in $place", ({ newRepository }) => {
  test("a raw image: full, unchanged, changed, zeroed; each generation comes back as it was", async () => {
    const repository = await newRepository();
    const folder = await temporaryFolder();
    const image = join(folder, "web.raw");
    await makeImage(image, {
      size: SIZE,
      seed: 1,
      parts: [
        { kind: "random", length: 5 * MiB + 4 * KiB },
        { kind: "hole", length: 3 * MiB },
        { kind: "text", length: 6 * MiB },
        { kind: "program", length: 4 * MiB },
      ],
    });
    const truths = new Map<string, string>();
    const take = async (): Promise<GenerationJson> => {
      const generation = await backUpRaw(repository, image);
      const truth = join(folder, `truth-${generation.sequence}`);
      await keepTruth("raw", image, truth);
      truths.set(generation.generation, truth);
      return generation;
    };

    const full = await take();
    expect(full).toMatchObject({ source: "web", kind: "full", parent: null, sequence: 1 });
    expect(full.stats.bytesRead + full.stats.bytesZero).toBeGreaterThanOrEqual(SIZE);
    expect(full.stats.bytesStored).toBeGreaterThan(14 * MiB);
    expect(full.stats.bytesPacked).toBeLessThan(full.stats.bytesStored);

    const before = await bytesOf(repository);
    const packs = await keysUnder(repository, "packs/");
    const unchanged = await take();
    expect(unchanged).toMatchObject({ kind: "rescan", parent: full.generation, sequence: 2 });
    expect(unchanged.stats).toMatchObject({
      bytesStored: 0,
      bytesPacked: 0,
      bytesDeduplicated: 0,
      bytesZero: 0,
    });
    expect(unchanged.stats.bytesUnchanged).toBe(SIZE);
    expect((await bytesOf(repository)) - before).toBeLessThan(100_000);
    expect(await keysUnder(repository, "packs/")).toEqual(packs);
    // README.md, "What it costs in requests": about twenty, and one for the parent's layer (a directory counts none)
    const requests = Object.values(unchanged.stats.requests).reduce((sum, count) => sum + count, 0);
    expect(requests).toBeLessThanOrEqual(24);

    // in turn: one byte, new chunks, what a hole hides, zeros written, a hole punched, a copy of what is known
    await patchImage(image, [
      { offset: 4 * CHUNK + 17, bytes: Buffer.from("!") },
      { offset: 20 * CHUNK + 5, length: 2 * CHUNK, seed: 7 },
      { offset: 6 * MiB, length: CHUNK, seed: 8 },
    ]);
    await qemuIo(
      "raw",
      image,
      "write -z 9M 1M",
      "discard 12M 1M",
      "write -P 0 15M 512k",
      "write -P 9 23M 64k",
    );
    const changed = await take();
    expect(changed).toMatchObject({ kind: "rescan", parent: unchanged.generation });
    expect(changed.stats.bytesStored).toBe((1 + 3 + 1 + 1) * CHUNK);
    expect(changed.stats.bytesZero).toBe(2 * MiB + 512 * KiB);

    const { generations } = await repository.json<{ generations: GenerationJson[] }>("list");
    expect(generations.map(({ generation }) => generation)).toEqual([...truths.keys()]);
    await expectRestored(repository, truths);
    const report = await repository.json<{ problems: unknown[]; chunksRead: number }>(
      "verify",
      "--read-data",
    );
    expect(report.problems).toEqual([]);
    expect(report.chunksRead).toBeGreaterThan(0);
  });

  test("a qcow2 image with dirty bitmaps: only what they name is read; the chain comes back", async () => {
    const repository = await newRepository();
    const folder = await temporaryFolder();
    const image = join(folder, "web.qcow2");
    await createQcow2(image, SIZE);
    await qemuIo("qcow2", image, "write -P 1 0 6M", "write -P 2 7M 300k", "write -P 3 20M 1M");
    const truths = new Map<string, string>();
    const take = async (bitmap: string | undefined, parent?: string): Promise<GenerationJson> => {
      const generation = await backUpQcow2(
        repository,
        image,
        bitmap === undefined ? undefined : { name: bitmap, parent: parent! },
      );
      const truth = join(folder, `truth-${generation.sequence}`);
      await keepTruth("qcow2", image, truth);
      truths.set(generation.generation, truth);
      return generation;
    };

    await qemuImg("bitmap", "--add", "-g", "64k", image, "since-first");
    const full = await take(undefined);
    expect(full.kind).toBe("full");

    await qemuIo(
      "qcow2",
      image,
      "write -P 4 1M 1",
      "write -z 2M 512k",
      "write -P 5 10M 70k",
      "discard 20M 512k",
    );
    await qemuImg("bitmap", "--add", "-g", "64k", image, "since-second");
    const second = await take("since-first", "web@latest");
    expect(second).toMatchObject({ kind: "incremental", parent: full.generation });
    expect(second.reason).toContain("since-first");
    expect(second.stats).toMatchObject({ bytesRead: 2 * CHUNK, bytesZero: MiB, bytesStored: 2 * CHUNK });

    // over what the second wrote, over what it made zero, and a write of zeros that qemu does not see as such
    await qemuIo("qcow2", image, "write -P 6 10M 64k", "write -P 7 2M 64k", "write -P 0 7M 256k");
    const third = await take("since-second", second.generation);
    expect(third).toMatchObject({ kind: "incremental", parent: second.generation });
    expect(third.stats).toMatchObject({ bytesRead: 3 * CHUNK, bytesZero: CHUNK, bytesStored: 2 * CHUNK });

    // the older bitmap still stands for all that changed since the first generation
    const again = await take("since-first", full.generation);
    expect(again).toMatchObject({ kind: "incremental", parent: full.generation, sequence: 4 });
    const rescan = await take(undefined);
    expect(rescan.stats).toMatchObject({
      bytesStored: 0,
      bytesDeduplicated: 0,
      bytesZero: 0,
      bytesUnchanged: SIZE,
    });

    await expectRestored(repository, truths);
  });
});
