import { copyFile, cp, mkdtemp, open, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { openRepository, type Repository } from "../../src/repository/config.ts";
import { condemnedKey, generationKey, newUuid, uuidTime, uuidv7 } from "../../src/repository/names.ts";
import { recordDamaged } from "../../src/repository/damaged.ts";
import type { SealedType } from "../../src/repository/sealing.ts";
import { openStore } from "../../src/store/open.ts";
import type { GenerationJson } from "../support/exported-images.ts";
import { expectFailure } from "../support/failures.ts";
import { temporaryFolder } from "../support/folder.ts";
import { compareFiles, makeImage, patchImage } from "../support/images.ts";
import type { NbdProcess } from "../support/nbd-process.ts";
import { given } from "../support/passwords.ts";
import { startQemuNbd } from "../support/qemu-nbd.ts";
import { keysUnder, programFor, type TestRepository } from "../support/repositories.ts";

// each test is many runs of the program, which a busy machine may take its time for
vi.setConfig({ testTimeout: 180_000 });

const never = new AbortController().signal;
const PASSWORD = "correct horse";

/** Two generations of web, one of other, in an encrypted repository; each test gets a copy. */
let folder: string;
let image: string;
let server: NbdProcess;
let sound: TestRepository;
let older: GenerationJson;
let newer: GenerationJson;
let copy: TestRepository;
let targets: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "blockhaul-tampering-"));
  image = join(folder, "web.raw");
  const env = { BLOCKHAUL_CACHE_DIR: join(folder, "cache"), BLOCKHAUL_PASSWORD: PASSWORD };
  sound = programFor(join(folder, "sound"), env);
  await makeImage(image, { size: 3 * MiB, seed: 1, parts: [{ kind: "random", length: 2 * MiB }] });
  server = await startQemuNbd(["--read-only", "--format=raw", image], { exportName: "web" });
  await sound.json("init", "--encrypt");
  older = await sound.json("backup", server.uri);
  await patchImage(image, [{ offset: 0, length: MiB, seed: 2 }]);
  newer = await sound.json("backup", server.uri);
  await patchImage(image, [{ offset: 0, length: MiB, seed: 3 }]);
  await sound.json("backup", server.uri, "--name", "other", "--dedup", "off");
});

afterAll(async () => {
  await server.stop();
  await rm(folder, { recursive: true, force: true });
});

beforeEach(async () => {
  const place = await temporaryFolder();
  targets = await temporaryFolder();
  await cp(sound.location, place, { recursive: true });
  copy = programFor(place, { BLOCKHAUL_CACHE_DIR: await temporaryFolder(), BLOCKHAUL_PASSWORD: PASSWORD });
});

function pathOf(key: string): string {
  return join(copy.location, key);
}

/** @param at from the start, or, below zero, from the end. */
async function flipBit(key: string, at: number): Promise<void> {
  const file = await open(pathOf(key), "r+");
  const offset = at < 0 ? (await file.stat()).size + at : at;
  const byte = Buffer.alloc(1);
  await file.read(byte, 0, 1, offset);
  byte[0]! ^= 1;
  await file.write(byte, 0, 1, offset);
  await file.close();
}

async function swap(one: string, two: string): Promise<void> {
  await rename(pathOf(one), pathOf(`${one}.aside`));
  await rename(pathOf(two), pathOf(one));
  await rename(pathOf(`${one}.aside`), pathOf(two));
}

/** Reads everything there is, and restores every source: something must end with 13, and nothing be restored wrong. */
async function expectFound(): Promise<void> {
  expect((await copy.run("verify", "--read-data")).code).toBe(13);
  const codes: (number | null)[] = [];
  for (const generation of [older.generation, newer.generation, "other"]) {
    const { code } = await copy.run("restore", generation, "--to", join(targets, `${generation}.raw`));
    codes.push(code);
  }
  expect(codes).toContain(13);
  expect(codes.filter((code) => code !== 0 && code !== 13)).toEqual([]);
  expect(await readdir(targets)).toHaveLength(codes.filter((code) => code === 0).length);
}

describe("one bit of any object that a restore reads: 13, and no file", () => {
  test.each<[string, string, number]>([
    ["a blob", "packs/", 100_000],
    ["a pack's directory", "packs/", -100],
    ["a pack's end", "packs/", -1],
    ["a layer", "layers/", 30],
    ["a layer's end", "layers/", -1],
    ["a manifest", "generations/", 200],
    ["a manifest's nonce", "generations/", 0],
    ["a manifest's tag", "generations/", -1],
  ])("%s", async (_, prefix, at) => {
    for (const key of await keysUnder(copy, prefix)) await flipBit(key, at);
    expectFailure(await copy.run("restore", "other", "--to", join(targets, "web.raw")), 13);
    expect((await copy.run("verify", "--read-data")).code).toBe(13);
    expect(await readdir(targets)).toEqual([]);
  });

  test.each(["repository.json", "keys/"])("%s", async (prefix) => {
    const key = (await keysUnder(copy, prefix))[0]!;
    for (const at of [5, 60, 150, -30, -1]) {
      await flipBit(key, at);
      expectFailure(await copy.run("restore", "web", "--to", join(targets, "web.raw")), 13, key);
      await flipBit(key, at);
    }
    expect(await readdir(targets)).toEqual([]);
  });

  test("what a backup reads besides: records of damage and of what is condemned", async () => {
    const repository = await opened();
    const pack = (await keysUnder(copy, "packs/"))[0]!.slice("packs/".length);
    await recordDamaged(repository, pack, [0], never);
    expect((await copy.run("backup", server.uri)).code).toBe(0);
    const damaged = (await keysUnder(copy, "damaged/"))[0]!;
    await flipBit(damaged, 40);
    expectFailure(await copy.run("backup", server.uri), 13, damaged);
    await flipBit(damaged, 40);
    const condemned = condemnedKey(newUuid());
    await repository.store.put(
      condemned,
      repository.sealer.sealObject("condemned", condemned, Buffer.from("x")),
      never,
    );
    await flipBit(condemned, -1);
    expectFailure(await copy.run("backup", server.uri), 13, condemned);
    repository.store.close();
  });
});

/** The copy, opened by the code of the program in this process. */
async function opened(): Promise<Repository> {
  return await openRepository(await openStore(copy.location), never, given(PASSWORD));
}

test("no bit of a record that is sealed as a whole can change", async () => {
  const { sealer, store } = await opened();
  const sealed: [SealedType, string][] = [
    ...(await keysUnder(copy, "generations/")).map((key): [SealedType, string] => ["manifest", key]),
    ...(await keysUnder(copy, "runs/")).map((key): [SealedType, string] => ["run", key]),
  ];
  expect(sealed.length).toBeGreaterThanOrEqual(9);
  for (const [type, key] of sealed) {
    const bytes = await store.get(key, MiB, never);
    expect(sealer.openObject(type, key, bytes).toString("utf8")).toMatch(/^\{"format":1,/);
    for (let at = 0; at < bytes.length; at++) {
      bytes[at]! ^= 1 << (at % 8);
      expect(() => sealer.openObject(type, key, bytes)).toThrow(expect.objectContaining({ code: "E_SEAL" }));
      bytes[at]! ^= 1 << (at % 8);
    }
  }
  store.close();
});

test("an index that was changed, or swapped, costs uploads and nothing else", async () => {
  const [one, two] = await keysUnder(copy, "index/");
  await swap(one!, two!);
  await flipBit(one!, 50);
  const again = await copy.json<GenerationJson>("backup", server.uri, "--name", "again");
  await copy.json("restore", again.generation, "--to", join(targets, "again.raw"));
  expect(await compareFiles(join(targets, "again.raw"), image)).toBeUndefined();
});

describe("R15: nothing can be moved", () => {
  test.each(["packs/", "layers/"])("two of %s swapped", async (prefix) => {
    const [one, two] = await keysUnder(copy, prefix);
    await swap(one!, two!);
    await expectFound();
  });

  test("two manifests of one source swapped", async () => {
    await swap(generationKey("web", older.generation), generationKey("web", newer.generation));
    await expectFound();
  });

  test("a manifest of another source in the place of one", async () => {
    const other = (await keysUnder(copy, "generations/other/"))[0]!;
    await swap(generationKey("web", newer.generation), other);
    await expectFound();
  });

  test("an older manifest under a newer name is not the latest generation", async () => {
    const replayed = uuidv7(uuidTime(newer.generation)! + 1000);
    await copyFile(pathOf(generationKey("web", older.generation)), pathOf(generationKey("web", replayed)));
    const list = await copy.run("list");
    expect([list.code, list.stderr]).toEqual([13, expect.stringContaining(replayed)]);
    expectFailure(await copy.run("restore", "web", "--to", join(targets, "web.raw")), 13, replayed);
    expectFailure(await copy.run("restore", replayed, "--to", join(targets, "web.raw")), 13, replayed);
    expect(await readdir(targets)).toEqual([]);
    // and is no parent either
    expect((await copy.run("backup", server.uri)).code).toBe(13);
  });

  test("an older manifest's bytes under the newer one's name", async () => {
    await copyFile(
      pathOf(generationKey("web", older.generation)),
      pathOf(generationKey("web", newer.generation)),
    );
    expectFailure(await copy.run("restore", "web", "--to", join(targets, "web.raw")), 13, newer.generation);
  });
});

test("R14: a plain repository.json in the place of the right one", async () => {
  const plain = programFor(await temporaryFolder(), { BLOCKHAUL_CACHE_DIR: await temporaryFolder() });
  await plain.json("init");
  await copyFile(join(plain.location, "repository.json"), pathOf("repository.json"));
  for (const args of [
    ["list"],
    ["backup", server.uri],
    ["restore", "web", "--to", join(targets, "web.raw")],
  ]) {
    expectFailure(await copy.run(...args), 12, /says that it is not encrypted/);
  }
  expect(await keysUnder(copy, "generations/")).toHaveLength(3);
});

test("keys of two repositories of one password swapped", async () => {
  const env = { BLOCKHAUL_CACHE_DIR: await temporaryFolder(), BLOCKHAUL_PASSWORD: PASSWORD };
  const other = programFor(await temporaryFolder(), env);
  await other.json("init", "--encrypt");
  const [mine, theirs] = [(await keysUnder(copy, "keys/"))[0]!, (await keysUnder(other, "keys/"))[0]!];
  const bytes = await readFile(join(other.location, theirs));
  await rm(pathOf(mine));
  await writeFile(pathOf(theirs), bytes);
  expectFailure(await copy.run("list"), 13, theirs);
  await rename(pathOf(theirs), pathOf(mine));
  expectFailure(await copy.run("list"), 13, mine);
});
