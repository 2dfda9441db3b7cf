import { hash } from "node:crypto";
import { mkdir, readdir, readFile, rm, stat, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, onTestFinished, test, vi } from "vitest";
import { KiB, MiB } from "../../../src/bytes/size.ts";
import { AgeHistogram } from "../../../src/serve/disk-cache-files.ts";
import { DiskCache, type CachedBlob } from "../../../src/serve/disk-cache.ts";
import { temporaryFolder } from "../../support/folder.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import { seeded } from "../../support/seeded.ts";
import { CHUNK, chunksOf, diskOf, expectSame, newBackups, numbers } from "../backup/chunks.ts";
import { readAt, servedDisk } from "./generation-disks.ts";

function blob(number: number, length = 10 * KiB): CachedBlob & { bytes: Buffer } {
  return { id: hash("sha256", `${number}`, "buffer"), crc32: number, bytes: Buffer.alloc(length, number) };
}

async function cacheIn(folder: string, bytesMax = MiB): Promise<{ cache: DiskCache; said: string[] }> {
  const said: string[] = [];
  const cache = await DiskCache.open(folder, bytesMax, (message) => said.push(message));
  onTestFinished(() => cache.close());
  return { cache, said };
}

async function filesIn(folder: string): Promise<string[]> {
  const names = await readdir(folder, { recursive: true, withFileTypes: true });
  return names.filter((one) => one.isFile()).map(({ parentPath, name }) => join(parentPath, name));
}

/** What a cache answers for a blob, and whether it is right. */
async function isKept(cache: DiskCache, wanted: CachedBlob & { bytes: Buffer }): Promise<boolean> {
  const into = Buffer.alloc(wanted.bytes.length);
  const found = await cache.read(wanted, into);
  if (found) expect(into.equals(wanted.bytes)).toBe(true);
  return found;
}

describe("files", () => {
  test("what is kept is read again, by another process too; what is not there is not", async () => {
    const folder = await temporaryFolder();
    const { cache } = await cacheIn(folder);
    await Promise.all(numbers(1, 20).map((number) => cache.keep(blob(number), blob(number).bytes)));
    const { cache: other } = await cacheIn(folder);
    for (const number of numbers(1, 20)) expect(await isKept(other, blob(number))).toBe(true);
    expect(await isKept(other, blob(21))).toBe(false);
    expect(await isKept(other, { ...blob(3), crc32: 4 })).toBe(false);
    expect(await isKept(other, blob(3, 9 * KiB))).toBe(false); // of another length
    await other.drop(blob(3));
    expect(await isKept(cache, blob(3))).toBe(false);
    await rm(folder, { recursive: true });
    expect(await isKept(cache, blob(5))).toBe(false);
    await cache.keep(blob(5), blob(5).bytes); // and anybody may delete it all
    expect(await isKept(cache, blob(5))).toBe(true);
  });

  test("the files never take more than they may; what was not used for longest goes first", async () => {
    const folder = await temporaryFolder();
    const first = await cacheIn(folder, 400 * KiB);
    const hoursAgo = (hours: number): number => Date.now() / 1000 - hours * 3600;
    for (const number of numbers(1, 30)) await first.cache.keep(blob(number), blob(number).bytes);
    const files = await filesIn(folder);
    expect(files).toHaveLength(29);
    const used = numbers(1, 30).filter((number) => number % 3 === 0);
    for (const number of numbers(1, 30)) {
      const name = Buffer.from(blob(number).id).toString("hex");
      const when = hoursAgo(used.includes(number) ? 2 : 1); // until they are used, they come first
      await utimes(
        files.find((file) => file.includes(name))!,
        when,
        when,
      );
    }
    for (const number of used) expect(await isKept(first.cache, blob(number))).toBe(true);
    const total = async (): Promise<number> => {
      const sizes = await Promise.all(
        (await filesIn(folder)).map((file) => stat(file).catch(() => undefined)),
      );
      return sizes.reduce((sum, found) => sum + Math.ceil((found?.size ?? 0) / 4096) * 4096, 0);
    };
    let added = 30;
    await vi.waitUntil(async () => {
      await first.cache.keep(blob(added), blob(added).bytes);
      added++;
      expect(await total()).toBeLessThanOrEqual(400 * KiB);
      const there = await filesIn(folder);
      const isThere = (number: number): boolean =>
        there.some((file) => file.includes(Buffer.from(blob(number).id).toString("hex")));
      return !isThere(1) || !isThere(2) || !isThere(4);
    });
    for (const number of used) expect(await isKept(first.cache, blob(number))).toBe(true);
    for (const number of numbers(added, added + 30)) {
      await first.cache.keep(blob(number), blob(number).bytes);
      expect(await total()).toBeLessThanOrEqual(400 * KiB);
    }
    await first.cache.close();
    // a smaller bound, next time
    const second = await cacheIn(folder, 50 * KiB);
    await vi.waitUntil(async () => (await filesIn(folder)).length <= 4);
    await second.cache.keep(blob(70), blob(70).bytes);
  });

  test("what others left is passed over, what a dead process left is removed", async () => {
    const folder = await temporaryFolder();
    await mkdir(join(folder, "ab"), { recursive: true });
    const [mine, leftover, young] = [
      "notes.txt",
      "ab/.0b5e55ed-0000-4000-8000-000000000b00",
      "ab/.0b5e55ed-0000-4000-8000-000000000b01",
    ].map((name) => join(folder, name));
    for (const path of [mine!, leftover!, young!]) await writeFile(path, "x");
    await utimes(leftover!, 1000, 1000);
    await utimes(mine!, 1000, 1000);
    const { cache } = await cacheIn(folder, 20 * KiB);
    for (const number of numbers(1, 9)) await cache.keep(blob(number), blob(number).bytes);
    await vi.waitUntil(async () => !(await filesIn(folder)).includes(leftover!));
    expect(await filesIn(folder)).toEqual(expect.arrayContaining([mine, young]));
  });

  test("one that cannot be written says so once, and is read all the same", async () => {
    const folder = await temporaryFolder();
    const { cache, said } = await cacheIn(folder);
    await cache.keep(blob(1), blob(1).bytes);
    const name = Buffer.from(blob(2).id).toString("hex").slice(0, 2);
    await writeFile(join(folder, name), "in the way");
    for (const number of [2, 2, 3]) await cache.keep(blob(number), blob(number).bytes);
    expect(said).toEqual([expect.stringContaining(`Nothing more goes to the cache in ${folder}`)]);
    expect(await isKept(cache, blob(1))).toBe(true);
    expect(await isKept(cache, blob(3))).toBe(false);
    await expect(DiskCache.open(join(folder, name, "below"), MiB, () => {})).rejects.toMatchObject({
      kind: "usage",
      code: "E_CACHE_DISK",
    });
  });
});

test("ages: at least so many bytes of the oldest are chosen, and none that is clearly younger than another left", () => {
  for (let seed = 1; seed <= 200; seed++) {
    const random = seeded(seed);
    const files = Array.from({ length: 1 + random(50) }, () => ({
      age: random(2) === 0 ? random(100_000) : random(2_000_000_000),
      bytes: 1 + random(1000),
    }));
    const ages = new AgeHistogram();
    for (const { age, bytes } of files) ages.add(age, bytes);
    const wanted = 1 + random(ages.bytes);
    const isOld = ages.oldest(wanted);
    const chosen = files.filter(({ age }) => isOld(age));
    const sum = chosen.reduce((total, { bytes }) => total + bytes, 0);
    expect(sum, `seed ${seed}`).toBeGreaterThanOrEqual(wanted);
    const youngest = Math.min(...chosen.map(({ age }) => age));
    const left = files.filter(({ age }) => !isOld(age));
    for (const { age } of left) expect(age, `seed ${seed}`).toBeLessThan(youngest);
    const closeTo = chosen.filter(({ age }) => age <= youngest * 1.04 + 40);
    const surely = sum - closeTo.reduce((total, { bytes }) => total + bytes, 0);
    expect(surely, `seed ${seed}`).toBeLessThan(wanted);
  }
});

describe("served from it", () => {
  test("a later serve fetches nothing that is there; a damaged file is fetched anew, and is right afterwards", async () => {
    const folder = await temporaryFolder();
    for (const encrypted of [false, true]) {
      const backups = await newBackups({ encrypted });
      const { manifest } = await backups.backup([diskOf(numbers(1, 9))]);
      let ranges = 0;
      const store = new HookedStore(backups.store, {
        before: (operation) => void (ranges += Number(operation === "getRange")),
      });
      const serveAndRead = async (files = 8): Promise<number> => {
        const { cache } = await cacheIn(join(folder, `${encrypted}`));
        if (files < 8) vi.spyOn(cache, "keep").mockResolvedValue(); // no room, for one
        const disk = await servedDisk(backups, manifest, { store, disk: cache });
        const before = ranges;
        expectSame(await readAt(disk, 0, 8 * CHUNK), chunksOf(...numbers(1, 9)));
        await vi.waitUntil(async () => (await filesIn(join(folder, `${encrypted}`))).length === files);
        return ranges - before;
      };
      expect(await serveAndRead()).toBeGreaterThan(0);
      expect(await serveAndRead()).toBe(0);
      const [victim] = await filesIn(join(folder, `${encrypted}`));
      const bytes = await readFile(victim!);
      bytes[bytes.length >> 1]! ^= 1;
      await writeFile(victim!, bytes);
      expect(await serveAndRead(7)).toBe(1); // the damaged one is gone in any case
      expect(await serveAndRead()).toBe(1);
      expect(await serveAndRead()).toBe(0);
      if (encrypted) {
        const stored = await Promise.all((await filesIn(join(folder, "true"))).map((file) => readFile(file)));
        for (const number of numbers(1, 9))
          expect(stored.some((one) => one.includes(chunksOf(number).subarray(0, 32)))).toBe(false);
      }
    }
  });
});
