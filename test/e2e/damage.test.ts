import { cp, mkdtemp, open, readdir, rm, truncate } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import type { GenerationJson } from "../support/exported-images.ts";
import { expectFailure } from "../support/failures.ts";
import { temporaryFolder } from "../support/folder.ts";
import { compareFiles, makeImage, patchImage } from "../support/images.ts";
import type { NbdProcess } from "../support/nbd-process.ts";
import { startQemuNbd } from "../support/qemu-nbd.ts";
import { keysUnder, programFor, type TestRepository } from "../support/repositories.ts";

// each test is many runs of the program, which a busy machine may take its time for
vi.setConfig({ testTimeout: 180_000 });

/** A sound repository of one generation, of which each test gets a copy. */
let folder: string;
let image: string;
let server: NbdProcess;
let sound: TestRepository;
/** The copy, and where its restores go. */
let copy: TestRepository;
let targets: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "blockhaul-damage-"));
  image = join(folder, "web.raw");
  sound = programFor(join(folder, "sound"), { BLOCKHAUL_CACHE_DIR: join(folder, "cache") });
  await makeImage(image, { size: 3 * MiB, seed: 1, parts: [{ kind: "random", length: 2 * MiB }] });
  server = await startQemuNbd(["--read-only", "--format=raw", image], { exportName: "web" });
  await sound.json("init");
  await sound.json("backup", server.uri);
});

afterAll(async () => {
  await server.stop();
  await rm(folder, { recursive: true, force: true });
});

beforeEach(async () => {
  const place = await temporaryFolder();
  targets = await temporaryFolder();
  await cp(sound.location, place, { recursive: true });
  copy = programFor(place, { BLOCKHAUL_CACHE_DIR: await temporaryFolder() });
});

/** @param at from the start, or, below zero, from the end. */
async function flipBit(key: string, at: number): Promise<void> {
  const file = await open(join(copy.location, key), "r+");
  const offset = at < 0 ? (await file.stat()).size + at : at;
  const byte = Buffer.alloc(1);
  await file.read(byte, 0, 1, offset);
  byte[0]! ^= 0x10;
  await file.write(byte, 0, 1, offset);
  await file.close();
}

async function onlyKey(prefix: string): Promise<string> {
  const keys = await keysUnder(copy, prefix);
  expect(keys).toHaveLength(1);
  return keys[0]!;
}

/** As errors call the object: its id, without folders. */
function idOf(key: string): string {
  return key
    .split("/")
    .at(-1)!
    .replace(/\.json$/, "");
}

/** Both kinds of new file: an error that names the object, no success, and nothing under the target's name. */
async function expectNoRestore(key: string): Promise<void> {
  for (const target of ["restored.raw", `qcow2:${join(targets, "restored.qcow2")}`]) {
    const to = target.startsWith("qcow2:") ? target : join(targets, target);
    expectFailure(await copy.run("restore", "web", "--to", to), 13, idOf(key));
  }
  expect(await readdir(targets)).toEqual([]);
}

async function expectVerifyFinds(key: string, ...flags: string[]): Promise<void> {
  const { code, stdout, stderr } = await copy.run("verify", ...flags);
  expect(code, stderr).toBe(13);
  expect(stdout + stderr).toContain(idOf(key));
  expect(stdout).not.toContain("No problems");
  expect(stderr).not.toMatch(/^ {4}at /m);
}

describe("one bit flipped: a restore ends with 13, names the object and leaves no file; verify finds it", () => {
  test.each([
    { where: "a blob of the pack", prefix: "packs/", at: 300_000, flags: ["--read-data"] },
    { where: "the directory of the pack", prefix: "packs/", at: -100, flags: [] },
    { where: "the pack's end", prefix: "packs/", at: -1, flags: [] },
    { where: "the middle of the layer", prefix: "layers/", at: 100, flags: [] },
    { where: "the layer's end", prefix: "layers/", at: -1, flags: [] },
    { where: "the manifest", prefix: "generations/", at: 200, flags: [] },
    { where: "the manifest's checksum", prefix: "generations/", at: -20, flags: [] },
  ])("$where", async ({ prefix, at, flags }) => {
    const key = await onlyKey(prefix);
    await flipBit(key, at);
    await expectNoRestore(key);
    await expectVerifyFinds(key, ...flags);
  });

  test("of two manifests: list and verify tell of the other one all the same", async () => {
    const key = await onlyKey("generations/");
    const { code } = await copy.run("backup", server.uri, "--name", "other");
    expect(code).toBe(0);
    await flipBit(key, 200);
    const listed = await copy.run("list");
    expect(listed.code).toBe(13);
    expect(listed.stdout).toMatch(/ other /);
    expect(listed.stderr).toContain(idOf(key));
    const verified = await copy.run("verify");
    expect(verified.code).toBe(13);
    expect(verified.stdout).toMatch(/^1 generations, 1 packs/);
    expect(verified.stdout).toContain(`needed by ${idOf(key)}`);
  });

  test("repository.json", async () => {
    await flipBit("repository.json", 60);
    expectFailure(await copy.run("restore", "web", "--to", join(targets, "web.raw")), 13, "repository.json");
    expectFailure(await copy.run("verify"), 13, "repository.json");
    expect(await readdir(targets)).toEqual([]);
  });
});

describe("an object cut short, or gone", () => {
  test.each(["packs/", "layers/"])("of %s", async (prefix) => {
    const key = await onlyKey(prefix);
    await truncate(join(copy.location, key), 1000);
    await expectNoRestore(key);
    await expectVerifyFinds(key);
    await rm(join(copy.location, key));
    await expectNoRestore(key);
    await expectVerifyFinds(key);
  });
});

test("a restore over an existing file with --force that fails leaves it as it was", async () => {
  const target = join(targets, "web.raw");
  await cp(image, target);
  await flipBit(await onlyKey("packs/"), 300_000);
  expectFailure(await copy.run("restore", "web", "--to", target, "--force"), 13);
  expect(await compareFiles(target, image)).toBeUndefined();
  expect(await readdir(targets)).toEqual(["web.raw"]);
});

test("damage to what only speeds up costs nothing but time: index and run records", async () => {
  for (const key of [...(await keysUnder(copy, "index/")), ...(await keysUnder(copy, "runs/"))]) {
    await flipBit(key, 50);
  }
  const target = join(targets, "web.raw");
  await copy.json("restore", "web", "--to", target);
  expect(await compareFiles(target, image)).toBeUndefined();
  // without a cache the next run must read the index
  const again = await copy.json<GenerationJson>("backup", server.uri, "--name", "again");
  await copy.json("restore", again.generation, "--to", join(targets, "again.raw"));
  expect(await compareFiles(join(targets, "again.raw"), image)).toBeUndefined();
});

test("damage to a new generation's objects leaves the earlier one; verify says which is hurt", async () => {
  const before = await copy.objects();
  const truth = join(targets, "truth.raw");
  await cp(image, truth);
  const { generations } = await copy.json<{ generations: GenerationJson[] }>("list");
  const changed = join(targets, "changed.raw");
  await cp(image, changed);
  await patchImage(changed, [{ offset: MiB, length: 1000, seed: 2 }]);
  const other = await startQemuNbd(["--read-only", "--format=raw", changed], { exportName: "web" });
  const second = await copy.json<GenerationJson>("backup", other.uri).finally(() => other.stop());
  const pack = (await keysUnder(copy, "packs/")).find((key) => !before.has(key))!;
  await flipBit(pack, 1000);
  expectFailure(await copy.run("restore", "web", "--to", join(targets, "second.raw")), 13, idOf(pack));
  await copy.json("restore", generations[0]!.generation, "--to", join(targets, "first.raw"));
  expect(await compareFiles(join(targets, "first.raw"), truth)).toBeUndefined();
  const { code, stdout } = await copy.run("verify", "--read-data", "--json");
  expect(code).toBe(13);
  const { problems } = JSON.parse(stdout) as { problems: { message: string; generations: string[] }[] };
  expect(problems).toMatchObject([{ generations: [second.generation] }]);
  expect(problems[0]!.message).toContain(idOf(pack));
});

test("a flipped bit that no restore looks at is found by verify all the same", async () => {
  const [layer, pack] = [await onlyKey("layers/"), await onlyKey("packs/")];
  await flipBit(layer, 0);
  await expectVerifyFinds(layer);
  await flipBit(layer, 0);
  await flipBit(pack, 9);
  await expectVerifyFinds(pack, "--read-data");
  await flipBit(pack, 9);
  expect(await copy.json("verify", "--read-data")).toMatchObject({ problems: [] });
});
