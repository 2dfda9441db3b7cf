import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { backUpFile, keepTruth, type GenerationJson } from "../support/exported-images.ts";
import { temporaryFolder } from "../support/folder.ts";
import { compareFiles, makeImage, patchImage } from "../support/images.ts";
import { startMinio } from "../support/minio.ts";
import {
  bucketRepository,
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

interface Entry {
  readonly generation: string;
  readonly frozenAt: string;
  readonly reasons: readonly string[];
}

interface Forgotten {
  readonly dryRun: boolean;
  readonly sources: readonly { source: string; keep: readonly Entry[]; remove: readonly Entry[] }[];
}

interface Listed {
  readonly generations: readonly (GenerationJson & { readonly held: { reason: string | null } | null })[];
}

/** Generations of a small disk that changes a little, and what it held at each. */
async function history(
  repository: TestRepository,
  count: number,
): Promise<{ generation: string; truth: string }[]> {
  const folder = await temporaryFolder();
  const image = join(folder, "web.raw");
  await makeImage(image, { size: 2 * MiB, seed: 1, parts: [{ kind: "random", length: 2 * MiB }] });
  const made = [];
  for (let number = 1; number <= count; number++) {
    await patchImage(image, [{ offset: number * 100_000, length: 5000, seed: number }]);
    const { generation } = await backUpFile(repository, image, "--tag", `number=${number}`);
    const truth = join(folder, `truth-${number}`);
    await keepTruth("raw", image, truth);
    made.push({ generation, truth });
  }
  return made;
}

async function left(repository: TestRepository): Promise<string[]> {
  return (await repository.json<Listed>("list")).generations.map(({ generation }) => generation);
}

describe.each(PLACES)("in $place", ({ newRepository }) => {
  test("what is kept restores, what is forgotten is gone, and nothing but manifests went", async () => {
    const repository = await newRepository();
    const made = await history(repository, 5);
    const ids = made.map(({ generation }) => generation);
    await repository.json("hold", ids[1]!, "--reason", "for the audit");
    const rules = ["--source", "web", "--keep-last", "1", "--keep-tag", "number=3"];

    const before = await repository.objects();
    const dry = await repository.json<Forgotten>("forget", ...rules, "--dry-run");
    expect(dry).toMatchObject({
      dryRun: true,
      sources: [
        {
          source: "web",
          keep: [
            { generation: ids[1], reasons: ["held"] },
            { generation: ids[2], reasons: ["tag number=3"] },
            { generation: ids[4], reasons: ["last 1", "newest of its source"] },
          ],
          remove: [
            { generation: ids[0], reasons: ["no rule keeps it"] },
            { generation: ids[3], reasons: ["no rule keeps it"] },
          ],
        },
      ],
    });
    expect(await repository.objects()).toEqual(before);

    expect(await repository.json<Forgotten>("forget", ...rules)).toEqual({ ...dry, dryRun: false });
    const after = await repository.objects();
    const missing = [...before.keys()].filter((key) => !after.has(key));
    expect(missing.sort()).toEqual([0, 3].map((index) => `generations/web/${ids[index]!}.json`));
    expect(await left(repository)).toEqual([ids[1], ids[2], ids[4]]);
    const folder = await temporaryFolder();
    for (const { generation, truth } of [made[1]!, made[2]!, made[4]!]) {
      const target = join(folder, `${generation}.raw`);
      await repository.json("restore", generation, "--to", target);
      expect(await compareFiles(target, truth), generation).toBeUndefined();
    }
    const gone = await repository.run("restore", ids[0]!, "--to", join(folder, "none"));
    expect(gone).toMatchObject({ code: 10, stdout: "" });
    expect(await repository.json("verify", "--read-data")).toMatchObject({ generations: 3, problems: [] });

    // held: not even by its id; released, it goes
    const held = await repository.run("forget", ids[1]!);
    expect(held).toMatchObject({ code: 11, stdout: "" });
    expect(held.stderr).toContain(`run blockhaul release ${ids[1]!} first`);
    await repository.json("release", ids[1]!);
    const byId = await repository.json<Forgotten>("forget", ids[1]!);
    expect(byId.sources).toMatchObject([
      { keep: [], remove: [{ generation: ids[1], reasons: ["asked for"] }] },
    ]);
    expect(await left(repository)).toEqual([ids[2], ids[4]]);
    expect(await keysUnder(repository, "holds/")).toEqual([]);
  });
});

describe("on the command line", () => {
  test("held: list and show say so, twice is once, and release of what is not held is an error", async () => {
    const repository = await directoryRepository();
    const [first, second] = (await history(repository, 2)).map(({ generation }) => generation);
    const held = await repository.run("hold", first!, "--reason", "for the audit");
    expect(held.code, held.stderr).toBe(0);
    expect(held.stdout).toBe(`Generation ${first!} of web is held: for the audit\n`);
    const again = await repository.run("hold", first!, "--reason", "another", "--strict");
    expect(again.code).toBe(16); // the reason was not taken over
    expect(again.stdout).toContain("was held already, since 20");
    expect(again.stdout).toContain("for the audit");
    const table = (await repository.run("list")).stdout;
    expect(table).toMatch(new RegExp(`${first!} .* HELD first generation of web`));
    expect(table.match(/HELD/g)).toHaveLength(1);
    expect((await repository.run("show", first!)).stdout).toMatch(/^HELD +since 20.*: for the audit$/m);
    const { generations } = await repository.json<Listed>("list");
    expect(generations.map((one) => one.held?.reason)).toEqual(["for the audit", undefined]);
    expect(await repository.json("show", first!)).toEqual({ ...generations[0], encrypted: false });
    const none = await repository.run("release", second!);
    expect(none).toMatchObject({ code: 10, stdout: "" });
    expect(none.stderr).toContain("is not held");
    expect((await repository.run("hold", first!, "--reason", " ")).code).toBe(2);
  });

  test("for people: a table with each generation and why, in the zone that was asked for", async () => {
    const repository = await directoryRepository();
    const [first, second] = (await history(repository, 2)).map(({ generation }) => generation);
    const rules = ["--keep-last", "1", "--timezone", "Asia/Kathmandu"];
    const dry = await repository.run("forget", ...rules, "--dry-run");
    expect(dry.code, dry.stderr).toBe(0);
    const lines = dry.stdout.split("\n");
    expect(lines[0]).toMatch(/^GENERATION +SOURCE +TAKEN +WHY$/);
    expect(lines[1]).toMatch(new RegExp(`^${first!}  web .*\\+05:45  would forget  no rule keeps it$`));
    expect(lines[2]).toMatch(new RegExp(`^${second!}  web .*\\+05:45  keep +last 1, newest of its source$`));
    expect(lines[3]).toBe("Would forget 1 generation, keep 1; nothing was removed");
    const done = await repository.run("forget", ...rules);
    expect(done.stdout).toContain(
      "Forgot 1 generation, kept 1; the data stays stored until a prune removes it",
    );
    const newest = await repository.run("forget", second!);
    expect(newest).toMatchObject({ code: 0 });
    expect(newest.stderr).toContain(`${second!} was the newest of its source`);
    expect((await repository.run("list")).stdout).toBe("No generations yet\n");
  });

  test("what cannot be is refused, and nothing is removed", async () => {
    const repository = await directoryRepository();
    await history(repository, 2);
    const before = await repository.objects();
    const refused: readonly [flags: string[], code: number, message: string][] = [
      [[], 2, "Give at least one rule"],
      [["--source", "web"], 2, "Give at least one rule"],
      [["--keep-last", "0"], 2, "--keep-last takes a whole number from 1"],
      [["--keep-daily", "0.5"], 2, "--keep-daily takes a whole number from 1"],
      [["--keep-within", "14"], 2, 'Not a duration: "14"'],
      [["--keep-tag", "ticket"], 2, 'Not KEY=VALUE: "ticket"'],
      [["--keep-last", "1", "--timezone", "Berlin"], 2, 'Not a time zone: "Berlin"'],
      [["web@2026-11-21", "--keep-last", "1"], 2, "not both"],
      [["web@2026-11-21", "--source", "web"], 2, "not both"],
      [["--source", "wbe", "--keep-last", "1"], 10, 'No source is called "wbe"'],
      [["web"], 2, "is the newest generation of web"],
    ];
    for (const [flags, code, message] of refused) {
      const failed = await repository.run("forget", ...flags);
      expect(failed, flags.join(" ")).toMatchObject({ code, stdout: "" });
      expect(failed.stderr).toContain(message);
    }
    expect(await repository.objects()).toEqual(before);
  });
});
