import { readdir, readFile, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, onTestFinished, test, vi } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import type { CondemnedRecord } from "../../src/repository/condemned.ts";
import { encodeRecord } from "../../src/repository/record.ts";
import type { PruneReport } from "../../src/upkeep/prune/prune-report.ts";
import { backUpFile, keepTruth } from "../support/exported-images.ts";
import { temporaryFolder } from "../support/folder.ts";
import { compareFiles, makeImage } from "../support/images.ts";
import { minioClient, startMinio } from "../support/minio.ts";
import {
  bucketRepository,
  directoryRepository,
  programFor,
  type TestRepository,
} from "../support/repositories.ts";

// many runs of the program, which a busy machine may take its time for
vi.setConfig({ testTimeout: 180_000 });

const DAY_MS = 24 * 3_600_000;

/** As if all of it had been stored, and condemned, so many days before. */
async function age(repository: TestRepository, days: number): Promise<void> {
  const files = await readdir(repository.location, { recursive: true, withFileTypes: true });
  for (const file of files.filter((one) => one.isFile())) {
    const path = join(file.parentPath, file.name);
    if (path.includes("/condemned/")) {
      const record = JSON.parse(await readFile(path, "utf8")) as CondemnedRecord & { sha256?: string };
      delete record.sha256;
      const since = new Date(Date.parse(record.since) - days * DAY_MS).toISOString();
      await writeFile(path, encodeRecord({ ...record, since }));
    }
    const then = new Date(Date.now() - days * DAY_MS);
    await utimes(path, then, then);
  }
}

async function packs(repository: TestRepository): Promise<number> {
  return [...(await repository.objects()).keys()].filter((key) => key.startsWith("packs/")).length;
}

test("forgotten, brought back, forgotten, condemned, deleted; and what is kept restores", async () => {
  const repository = await directoryRepository();
  const folder = await temporaryFolder();
  const made: { generation: string; truth: string }[] = [];
  for (const seed of [1, 2]) {
    const image = join(folder, `web-${seed}.raw`);
    await makeImage(image, { size: 2 * MiB, seed, parts: [{ kind: "random", length: 2 * MiB }] });
    const { generation } = await backUpFile(repository, image, "--full");
    const truth = join(folder, `truth-${seed}`);
    await keepTruth("raw", image, truth);
    made.push({ generation, truth });
  }
  const [old, kept] = [made[0]!, made[1]!];
  const restored = join(folder, "restored.raw");

  await repository.json("forget", old.generation);
  const { forgotten } = await repository.json<{ forgotten: { generation: string; until: string }[] }>(
    "list",
    "--forgotten",
  );
  expect(forgotten.map(({ generation }) => generation)).toEqual([old.generation]);
  expect((await repository.run("list", "--forgotten")).stdout).toMatch(/until the first prune after 20/);
  expect(await repository.json("restore-generation", old.generation)).toMatchObject({ restored: true });
  await repository.json("restore", old.generation, "--to", restored);
  expect(await compareFiles(restored, old.truth)).toBeUndefined();

  await repository.json("forget", old.generation);
  expect(await repository.json<PruneReport>("prune")).toMatchObject({
    forgotten: 1,
    condemned: { packs: 0 },
  });
  await age(repository, 2);
  const there = await packs(repository);
  const dry = await repository.json<PruneReport>("prune", "--dry-run");
  expect(dry.condemned).toMatchObject({ packs: 1, layers: 1 });
  const { stdout, code } = await repository.run("prune");
  expect(code).toBe(0);
  expect(stdout).toMatch(/^condemned +1 +1 +2\.\d+ MiB/m);
  expect(stdout).toMatch(/Freed 0 B; 2\.\d+ MiB will be freed by a later prune/);
  expect((await repository.run("restore-generation", old.generation)).code).toBe(10);
  expect(await packs(repository)).toBe(there);
  await age(repository, 2);
  expect((await repository.json<PruneReport>("prune")).deleted).toEqual(dry.condemned);
  expect(await packs(repository)).toBe(there - 1);

  await repository.json("restore", kept.generation, "--to", restored, "--force");
  expect(await compareFiles(restored, kept.truth)).toBeUndefined();
  expect((await repository.run("verify", "--read-data")).code).toBe(0);
  expect((await repository.run("prune", "--grace", "1h")).code).toBe(2);
});

test("in a bucket it says what it sends and what that costs, by a sheet of one's own too", async () => {
  const server = await startMinio();
  onTestFinished(() => server.stop());
  await minioClient(server).makeBucket("prune-prices");
  const repository = await bucketRepository(server, "prune-prices");
  const folder = await temporaryFolder();
  const image = join(folder, "web.raw");
  await makeImage(image, { size: 2 * MiB, seed: 1, parts: [{ kind: "random", length: 2 * MiB }] });
  await backUpFile(repository, image);

  const { stdout } = await repository.run("prune", "--dry-run");
  expect(stdout).toMatch(/^Would send about: .*ListObjectsV2 \d+, .*; less than \$0\.0001$/m);
  expect(stdout).toMatch(/^Saves \$0 a month \(AWS S3 Standard, eu-central-1, 20\d\d-\d\d-\d\d\)$/m);
  expect((await repository.run("stats")).stdout).toMatch(/^less than \$0\.0001 a month \(AWS/m);

  const own = join(folder, "prices.json");
  const sheet = { name: "Ours", asOf: "2026-01-01", currency: "CHF ", gibOut: 0 };
  await writeFile(own, JSON.stringify({ ...sheet, writesPer1000: 1000, readsPer1000: 0, gibMonth: 1024 }));
  const priced = programFor(repository.location, { ...repository.env, BLOCKHAUL_PRICES: own });
  const done = await priced.json<PruneReport & { readonly cost: { readonly requests: number } }>("prune");
  const { ListObjectsV2 = 0, PutObject = 0 } = done.requests;
  expect(done.cost.requests).toBe(ListObjectsV2 + PutObject);
  expect((await priced.run("stats")).stdout).toMatch(/^CHF 2\.\d\d a month \(Ours, 2026-01-01\)$/m);

  await writeFile(own, "{}");
  const refused = await priced.run("stats");
  expect(refused).toMatchObject({ code: 2, stderr: expect.stringContaining(own) as string });
});
