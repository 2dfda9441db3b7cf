import { execFile } from "node:child_process";
import { hash } from "node:crypto";
import { readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { expect, test, vi } from "vitest";
import { KiB, MiB } from "../../src/bytes/size.ts";
import { createRepository, type Repository } from "../../src/repository/config.ts";
import type { Manifest } from "../../src/repository/manifest.ts";
import { packKey } from "../../src/repository/names.ts";
import { openNewStore } from "../../src/store/open.ts";
import { Backups } from "../support/backups.ts";
import { temporaryFolder } from "../support/folder.ts";
import { movePack, storeForward } from "../support/moved-packs.ts";
import { firstKey } from "../support/passwords.ts";
import { noise, RandomDisk } from "../support/random-disk.ts";
import { ScriptedDisk } from "../support/scripted-disk.ts";
import { seeded } from "../support/seeded.ts";

// many runs of a program, each of which derives a key from a password, which a busy machine may take its time for
vi.setConfig({ testTimeout: 180_000 });

const SCRIPT = resolve(import.meta.dirname, "../../deploy/recovery/restore.py");
const CHUNK = 64 * KiB;
const PASSWORD = "pässword of the safe";

interface Ended {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the script as somebody who has lost everything but a copy of the bucket. */
function recover(args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Ended> {
  const options = { env: { PATH: process.env["PATH"], PYTHONDONTWRITEBYTECODE: "1", ...env } };
  return new Promise((done) => {
    execFile("python3", [SCRIPT, ...args], options, (error, stdout, stderr) =>
      done({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
    );
  });
}

interface Kept {
  readonly folder: string;
  readonly repository: Repository;
  readonly backups: Backups;
  /** What each generation must give. */
  readonly generations: readonly { readonly manifest: Manifest; readonly bytes: Buffer }[];
  readonly env: Readonly<Record<string, string>>;
}

/** Generations of a disk that changes and is resized, one on the other, in a folder. */
async function history(encrypted: boolean, count: number, seed: number): Promise<Kept> {
  const folder = join(await temporaryFolder(), "copy");
  const store = await openNewStore(folder);
  const sizes = { chunkSize: CHUNK, packSize: MiB, partSize: 128 * KiB };
  const key = encrypted ? firstKey(PASSWORD) : undefined;
  const repository = await createRepository(store, sizes, new AbortController().signal, key);
  const backups = await Backups.start(repository);
  const random = seeded(seed);
  const disk = new RandomDisk("vda", random, CHUNK, 120);
  noise(seed, 60 * CHUNK).copy(disk.bytes); // several packs, so that small layers are not merged into the first
  const generations = [];
  for (let index = 0; index < count; index++) {
    disk.change(index === 0 ? 15 : 1 + random(2));
    if (index % 3 === 2) disk.resize(120);
    const bytes = Buffer.from(disk.bytes);
    const { manifest } = await backups.backup([new ScriptedDisk("vda", bytes)]);
    generations.push({ manifest, bytes });
  }
  store.close();
  return { folder, repository, backups, generations, env: encrypted ? await passwordFile(PASSWORD) : {} };
}

async function passwordFile(password: string): Promise<Record<string, string>> {
  const path = join(await temporaryFolder(), "password");
  await writeFile(path, `${password}\n`, { mode: 0o600 });
  return { BLOCKHAUL_PASSWORD_FILE: path };
}

/** Every generation, by the script and by the program, against what was backed up. */
async function expectAll({ folder, backups, generations, env }: Kept): Promise<void> {
  const target = join(await temporaryFolder(), "restored.raw");
  for (const { manifest, bytes } of generations) {
    const { generation } = manifest;
    expect(await recover([folder, `web@${generation}`, target], env)).toMatchObject({ code: 0, stderr: "" });
    const restored = await readFile(target);
    expect(restored.equals(bytes), generation).toBe(true);
    expect(restored.equals(await backups.restore(manifest.disks[0]!)), generation).toBe(true);
    await rm(target);
  }
}

test.each([
  { encrypted: false, count: 9, seed: 11 },
  { encrypted: true, count: 6, seed: 11 },
])("the script restores what was backed up, resizes and all (encrypted: $encrypted)", async (options) => {
  const kept = await history(options.encrypted, options.count, options.seed);
  const layers = kept.generations.map(({ manifest }) => manifest.disks[0]!.layers.length);
  expect(Math.max(...layers)).toBeLessThan(options.count); // some were merged
  expect(Math.max(...layers)).toBeGreaterThan(1);
  expect(kept.generations.some(({ bytes }) => bytes.length % CHUNK !== 0)).toBe(true);
  await expectAll(kept);

  const { stdout } = await recover([kept.folder], kept.env);
  for (const { manifest } of kept.generations) expect(stdout).toContain(`web@${manifest.generation}`);
  const latest = join(await temporaryFolder(), "latest.raw");
  expect(await recover([kept.folder, "web", latest], kept.env)).toMatchObject({ code: 0 });
  expect((await readFile(latest)).equals(kept.generations.at(-1)!.bytes)).toBe(true);
});

test.each([false, true])(
  "packs that were rewritten, twice even, are found (encrypted: %s)",
  async (encrypted) => {
    const kept = await history(encrypted, 3, 13);
    const packs = await readdir(join(kept.folder, "packs"));
    for (const [index, pack] of packs.entries()) {
      const moved = await movePack(kept.repository, pack);
      await rm(join(kept.folder, packKey(pack)));
      if (index > 0) continue;
      await movePack(kept.repository, moved.target.pack);
      await rm(join(kept.folder, packKey(moved.target.pack)));
    }
    await expectAll(kept);
  },
);

/** Runs the script on the latest generation. Nothing may be left of a file that is not complete. */
async function expectDamaged(kept: Kept, key: string): Promise<void> {
  const folder = await temporaryFolder();
  const ended = await recover([kept.folder, "web", join(folder, "out.raw")], kept.env);
  expect(ended.code, `${key}: ${ended.stderr}`).toBe(1);
  expect(ended.stderr).toContain(key);
  expect(ended.stderr).not.toContain("Traceback");
  expect(await readdir(folder)).toEqual([]);
}

/** Lets `look` see the copy with one bit of the object changed, or all of it gone. */
async function withDamage(kept: Kept, key: string, at: number, look: () => Promise<void>): Promise<void> {
  const path = join(kept.folder, key);
  const sound = await readFile(path);
  const changed = Buffer.from(sound);
  changed[at < 0 ? sound.length + at : at]! ^= 1;
  await writeFile(path, changed);
  await look();
  await rm(path);
  await look();
  await writeFile(path, sound);
}

test.each([false, true])(
  "whatever is damaged or gone is named, with exit code 1 (encrypted: %s)",
  async (encrypted) => {
    const kept = await history(encrypted, 1, 14);
    const { manifest, bytes } = kept.generations[0]!;
    expect(bytes.length).toBeGreaterThan(4 * CHUNK);
    const [pack] = await readdir(join(kept.folder, "packs"));
    const layer = `layers/${manifest.disks[0]!.layers[0]!.layer}`;
    const tail = (await readFile(join(kept.folder, layer))).subarray(-16);
    const footerAt = -16 - tail.readUInt32LE(0);
    const places: readonly (readonly [string, number])[] = [
      [layer, 40],
      [layer, footerAt],
      [layer, footerAt + 20], // where its first segment begins: every chunk would go elsewhere
      [packKey(pack!), 16],
      [packKey(pack!), -130],
    ];
    for (const [key, at] of places) await withDamage(kept, key, at, () => expectDamaged(kept, key));
    const path = join(kept.folder, `generations/web/${manifest.generation}.json`);
    const sound = await readFile(path);
    sound[sound.length >> 1]! ^= 1;
    await writeFile(path, sound);
    await expectDamaged(kept, manifest.generation);
  },
);

test("a forward that is damaged is named", async () => {
  const kept = await history(false, 1, 15);
  const packs = await readdir(join(kept.folder, "packs"));
  const moved = await movePack(kept.repository, packs[0]!);
  await rm(join(kept.folder, packKey(packs[0]!)));
  await expectAll(kept);
  const key = `forwards/${packs[0]!}/${moved.forward}`;
  await truncate(join(kept.folder, key), 90);
  await expectDamaged(kept, key);
  await rm(join(kept.folder, key));
  await expectDamaged(kept, packKey(packs[0]!));
});

test("a forward that leads to other bytes is not believed", async () => {
  const kept = await history(false, 1, 15);
  const [pack] = await readdir(join(kept.folder, "packs"));
  const { old, target, forward } = await movePack(kept.repository, pack!);
  await rm(join(kept.folder, `forwards/${pack!}/${forward}`));
  const slots = Array.from({ length: old.slotCount }, (_, slot) => slot);
  const lie = slots.map((slot) => ({ slot, target: target.ref, to: slot })); // they lie in reverse
  const id = await storeForward(kept.repository, old, lie);
  await rm(join(kept.folder, packKey(pack!)));
  await expectDamaged(kept, `forwards/${pack!}/${id}`);
});

test("exit code 2, and nothing written: a wrong password, one too many, a file that is there, no such generation", async () => {
  const target = join(await temporaryFolder(), "out.raw");
  const secret = await history(true, 1, 16);
  const wrong = await recover([secret.folder, "web", target], await passwordFile("another"));
  expect(wrong).toMatchObject({ code: 2 });
  expect(wrong.stderr).toContain("the password opens none of the keys");
  const plain = await history(false, 1, 17);
  expect(await recover([plain.folder, "web", target], secret.env)).toMatchObject({ code: 2 });
  expect(await recover([plain.folder, "other", target])).toMatchObject({ code: 2 });
  expect(await recover([plain.folder, "web", target, "--disk", "vdb"])).toMatchObject({ code: 2 });
  await writeFile(target, "mine");
  expect(await recover([plain.folder, "web", target])).toMatchObject({ code: 2 });
  expect(await readFile(target, "utf8")).toBe("mine");
});

test("a repository.json that was changed without a password is refused", async () => {
  const kept = await history(true, 1, 18);
  const path = join(kept.folder, "repository.json");
  const text = await readFile(path, "utf8");
  const body = text.slice(0, -78).replace(`"chunkSize":${CHUNK}`, `"chunkSize":${2 * CHUNK}`);
  await writeFile(path, `${body},"sha256":"${hash("sha256", `${body}}`)}"}\n`);
  await expectDamaged(kept, "repository.json");
});
