import { chmod, mkdtemp, open, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { KiB, MiB } from "../../src/bytes/size.ts";
import { runCli } from "../support/cli.ts";
import type { GenerationJson } from "../support/exported-images.ts";
import { expectFailure } from "../support/failures.ts";
import { temporaryFolder } from "../support/folder.ts";
import { compareFiles, makeImage } from "../support/images.ts";
import type { NbdProcess } from "../support/nbd-process.ts";
import { startQemuNbd } from "../support/qemu-nbd.ts";
import {
  cacheEnvironment,
  directoryRepository,
  keysUnder,
  programFor,
  type TestRepository,
} from "../support/repositories.ts";

// each test is many runs of the program, which a busy machine may take its time for
vi.setConfig({ testTimeout: 180_000 });

const CHUNK = 256 * KiB;

let folder: string;
let image: string;
let server: NbdProcess;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "blockhaul-verify-"));
  image = join(folder, "web.raw");
  await makeImage(image, { size: 3 * MiB, seed: 1, parts: [{ kind: "random", length: 2 * MiB }] });
  server = await startQemuNbd(["--read-only", "--format=raw", image], { exportName: "web" });
});

afterAll(async () => {
  await server.stop();
  await rm(folder, { recursive: true, force: true });
});

async function flipBit({ location }: TestRepository, key: string, offset: number): Promise<void> {
  const file = await open(join(location, key), "r+");
  const byte = Buffer.alloc(1);
  await file.read(byte, 0, 1, offset);
  byte[0]! ^= 0x10;
  await file.write(byte, 0, 1, offset);
  await file.close();
}

async function expectRestores(repository: TestRepository, generation: string): Promise<void> {
  const target = join(await temporaryFolder(), "restored.raw");
  await repository.json("restore", generation, "--to", target);
  expect(await compareFiles(target, image)).toBeUndefined();
}

test("a bad chunk: found, recorded, stored again by the next backup; forgetting the old one ends it", async () => {
  const repository = await directoryRepository();
  const old = await repository.json<GenerationJson>("backup", server.uri);
  await flipBit(repository, (await keysUnder(repository, "packs/"))[0]!, 16 + 2 * CHUNK + 1000);

  const found = await repository.run("verify", "--read-data");
  expect(found.code).toBe(13);
  const third = `bytes ${2 * CHUNK}-${3 * CHUNK - 1}`;
  expect(found.stdout).toContain(`lost: web ${old.generation} ${old.disks[0]!.name}: 256 KiB, ${third}`);
  expect(found.stdout).toContain("1 bad chunks were recorded");
  expect(found.stdout).toContain("web: the next backup stores anew");
  expect(await keysUnder(repository, "damaged/")).toHaveLength(1);

  const next = await repository.json<GenerationJson>("backup", server.uri);
  expect(next.stats).toMatchObject({ chunksStored: 1 });
  await expectRestores(repository, next.generation);
  const after = await repository.run("verify", "--json");
  expect(after.code).toBe(13);
  expect(JSON.parse(after.stdout)).toMatchObject({
    slotsBad: 1,
    slotsRecorded: 0,
    losses: [{ generation: old.generation, bytes: CHUNK, ranges: [{ offset: 2 * CHUNK, length: CHUNK }] }],
  });
  expectFailure(await repository.run("restore", old.generation, "--to", join(folder, "no.raw")), 13);
  await repository.json("forget", old.generation);
  expect((await repository.run("verify", "--read-data")).stdout).toContain("No problems found");
});

test("without the password: sound packs pass, a flipped bit does not, and nobody is asked", async () => {
  const secrets = await temporaryFolder();
  const file = join(secrets, "password");
  await writeFile(file, "correct horse\n");
  await chmod(file, 0o600);
  const location = join(await temporaryFolder(), "repository");
  const cache = await cacheEnvironment();
  const owner = programFor(location, { ...cache, BLOCKHAUL_PASSWORD_FILE: file });
  await owner.json("init", "--encrypt");
  await owner.json("backup", server.uri);
  const scrubber = programFor(location, cache);
  expectFailure(await scrubber.run("verify"), 12);
  const sound = await scrubber.run("verify", "--keyless");
  expect(sound.code, sound.stderr).toBe(0);
  expect(sound.stdout).toMatch(/^1 of 1 packs \(2\.\d MiB\) and \d+ other objects read\n/);
  expect(sound.stdout).toMatch(/Not to be checked without the key: 1 manifests, 1 layers/);
  const parts = await Promise.all(
    ["1/2", "2/2"].map((part) => scrubber.json<{ packsRead: number }>("verify", "--keyless", "--part", part)),
  );
  expect(parts.reduce((sum, { packsRead }) => sum + packsRead, 0)).toBe(1);

  const [pack] = await keysUnder(owner, "packs/");
  await flipBit(owner, pack!, MiB + 5);
  const bad = await scrubber.run("verify", "--keyless");
  expect(bad.code).toBe(13);
  expect(bad.stdout).toContain(`${pack!.slice("packs/".length)} is damaged somewhere in its bytes ${MiB}-`);
  expectFailure(await scrubber.run("verify", "--keyless", "--read-data=10%"), 2, "--part");
  expectFailure(await scrubber.run("verify", "--keyless", "--part", "3/2"), 2, "3/2");
  expectFailure(await owner.run("verify", "--part", "1/2"), 2, "--keyless");
});

test("repair: the index comes back, a damaged hold holds on; the dry run touched nothing", async () => {
  const repository = await directoryRepository();
  const first = await repository.json<GenerationJson>("backup", server.uri);
  await repository.json("hold", first.generation);
  const [index] = await keysUnder(repository, "index/");
  await rm(join(repository.location, index!));
  const [hold] = await keysUnder(repository, "holds/");
  await flipBit(repository, hold!, 30);
  const before = await repository.objects();

  const dry = await repository.run("repair", "--dry-run");
  expect(dry.code).toBe(13);
  expect(dry.stdout).toMatch(/^would write index\/web\/: /m);
  expect(dry.stdout).toMatch(/^would write anew holds\/web\//m);
  expect(await repository.objects()).toEqual(before);

  const done = await repository.run("repair", "--read-data");
  expect(done.code, done.stderr).toBe(0);
  expect(done.stdout).toMatch(/^wrote index\/web\/.*: lists 1 packs/m);
  expect(done.stdout).toContain("No problems found");
  expectFailure(await repository.run("forget", first.generation), 11, "held");
  const env = { ...repository.env, ...(await cacheEnvironment()) }; // what only the index knows
  const again = await runCli(["backup", server.uri, "--name", "again", "--json"], { env });
  expect((JSON.parse(again.stdout) as GenerationJson).stats).toMatchObject({ chunksStored: 0 });
  expect(await repository.json("repair")).toMatchObject({ dryRun: false, actions: [], problems: [] });
});

test("a manifest that cannot be read is named with what to do, and stays until that is done", async () => {
  const repository = await directoryRepository();
  const { generation } = await repository.json<GenerationJson>("backup", server.uri);
  const [key] = await keysUnder(repository, "generations/");
  await flipBit(repository, key!, 100);
  const repaired = await repository.run("repair");
  expect(repaired.code).toBe(13);
  expect(repaired.stdout).toContain(`blockhaul forget ${generation}`);
  expect(await keysUnder(repository, "generations/")).toEqual([key]);
  await repository.json("forget", generation);
  const next = await repository.json<GenerationJson>("backup", server.uri);
  expect(next.stats, "the packs are there still").toMatchObject({ chunksStored: 0 });
  await expectRestores(repository, next.generation);
  expect(await repository.json("verify", "--read-data")).toMatchObject({ problems: [] });
});
