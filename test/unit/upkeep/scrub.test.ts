import { crc32 } from "node:zlib";
import { expect, test } from "vitest";
import { createRepository, openRepository, type Repository } from "../../../src/repository/config.ts";
import { recordDamaged } from "../../../src/repository/damaged.ts";
import { holdGeneration } from "../../../src/repository/holds.ts";
import { newUuid } from "../../../src/repository/names.ts";
import type { ObjectStore } from "../../../src/store/store.ts";
import { scrubBuffer, scrubPack } from "../../../src/upkeep/scrub/packs.ts";
import { scrub, type ScrubReport } from "../../../src/upkeep/scrub.ts";
import { Backups } from "../../support/backups.ts";
import { FaultyStore } from "../../support/faulty-store.ts";
import { MemoryStore } from "../../support/memory-store.ts";
import { noise } from "../../support/random-disk.ts";
import { ScriptedDisk } from "../../support/scripted-disk.ts";
import { numbers } from "../backup/chunks.ts";

const never = new AbortController().signal;
const CHUNK = 64 * 1024;
const PASSWORD = { given: true, origin: "test", read: () => Promise.resolve(Buffer.from("secret")) };

/** A repository with its `repository.json`, and, if encrypted, its key; one generation, held, of 40 noisy chunks. */
async function newRepository(encrypted: boolean): Promise<{ store: MemoryStore; backups: Backups }> {
  const store = new MemoryStore();
  const sizes = { chunkSize: CHUNK, packSize: 20 * CHUNK, partSize: CHUNK };
  const notes = { label: "", host: "test" };
  const first = encrypted ? { password: Buffer.from("secret"), notes } : undefined;
  const repository: Repository = await createRepository(store, sizes, never, first);
  const backups = await Backups.start(repository);
  await backups.backup([new ScriptedDisk("vda", noise(1, 40 * CHUNK))]);
  const [generation] = await backups.generations();
  const hold = { reason: null, host: "test", writer: "test" };
  await holdGeneration(repository, generation!, hold, never);
  await recordDamaged(repository, newUuid(), [1], never);
  await backups.verify();
  return { store, backups };
}

async function scrubbed(store: ObjectStore, number = 1, of = 1): Promise<ScrubReport> {
  const request = { part: { number, of }, progress: () => undefined };
  return await scrub(store, request, new AbortController());
}

test.each([false, true])(
  "a sound repository, encrypted %s: all packs, and what it cannot check",
  async (encrypted) => {
    const { store } = await newRepository(encrypted);
    const packs = [...store.objects.keys()].filter((key) => key.startsWith("packs/"));
    expect(packs.length).toBeGreaterThan(2);
    const report = await scrubbed(store);
    expect(report).toMatchObject({
      encrypted,
      packs: packs.length,
      packsRead: packs.length,
      problems: [],
      foreign: 0,
    });
    expect(report.bytesRead).toBe(packs.reduce((sum, key) => sum + store.bytes(key).length, 0));
    expect(report.unchecked).toEqual(
      encrypted ? { damaged: 1, generation: 1, hold: 1, layer: 1, runBegin: 1, runEnd: 1 } : {},
    );
  },
);

test.each([false, true])("every flipped byte of a pack is found, encrypted %s", async (encrypted) => {
  const { store } = await newRepository(encrypted);
  const key = [...store.objects.keys()].find((one) => one.startsWith("packs/"))!;
  const [pack, bytes, buffer] = [key.slice("packs/".length), store.bytes(key), scrubBuffer()];
  const { length } = bytes;
  // all of header, directory, checksums and end, and blobs at a stride that meets every span
  const offsets = [...numbers(0, 32), ...numbers(length - 1200, length)];
  for (let at = 32; at < length - 1200; at += 4001) offsets.push(at);
  for (const at of offsets) {
    bytes[at]! ^= 1 << (at & 7);
    const scrubbing = scrubPack(store, pack, encrypted, buffer, never);
    await expect(scrubbing, `byte ${at} of ${length}`).rejects.toMatchObject({ kind: "corrupt" });
    bytes[at]! ^= 1 << (at & 7);
  }
  expect(await scrubPack(store, pack, encrypted, buffer, never)).toBe(length);
  bytes[CHUNK]! ^= 1;
  const { problems } = await scrubbed(store);
  expect(problems).toHaveLength(1);
  expect(problems[0]!.message).toContain(`${pack} is damaged somewhere in its bytes 0-`);
});

test.each([false, true])(
  "objects besides packs: what is said to be checked is, encrypted %s",
  async (encrypted) => {
    const { store } = await newRepository(encrypted);
    const sealed = /^(generations|layers|runs|leases|condemned|damaged|holds)\//;
    for (const [key, { bytes }] of store.objects) {
      if (key.startsWith("packs/") || key === "repository.json") continue;
      for (let at = 0; at < bytes.length; at += 1 + Math.floor(bytes.length / 12)) {
        bytes[at]! ^= 0x20;
        const { problems } = await scrubbed(store);
        if (encrypted && key.startsWith("layers/") && at >= bytes.length - 16) continue; // partly
        const covered = !(encrypted && sealed.test(key)) || (key.startsWith("layers/") && at < 16);
        expect(problems.length, `${key}, byte ${at}`).toBe(covered ? 1 : 0);
        bytes[at]! ^= 0x20;
      }
    }
  },
);

test("a flipped repository.json is refused, without a password too", async () => {
  const { store } = await newRepository(true);
  store.bytes("repository.json")[60]! ^= 1;
  await expect(scrubbed(store)).rejects.toMatchObject({ code: "E_RECORD" });
  await expect(openRepository(store, never, PASSWORD)).rejects.toMatchObject({ kind: "corrupt" });
});

test("a pack that does not begin like one is damaged, also where its checksums agree", async () => {
  const { store } = await newRepository(false);
  const key = [...store.objects.keys()].find((one) => one.startsWith("packs/"))!;
  const bytes = store.bytes(key);
  bytes[0]! ^= 1;
  const spans = Math.ceil((bytes.length - 64) / (1024 * 1024 + 4));
  const trailer = bytes.length - 64 - 4 * spans;
  bytes.writeUInt32LE(crc32(bytes.subarray(0, Math.min(1024 * 1024, trailer))), trailer);
  bytes.writeUInt32LE(crc32(bytes.subarray(trailer, bytes.length - 12)), bytes.length - 12);
  const { problems } = await scrubbed(store);
  expect(problems.map(({ code }) => code)).toEqual(["E_PACK_HEADER"]);
});

test("the parts of packs are all of them, and no pack is in two", async () => {
  const { store } = await newRepository(false);
  const whole = await scrubbed(store);
  let [packs, bytes] = [0, 0];
  for (let number = 1; number <= 3; number++) {
    const report = await scrubbed(store, number, 3);
    packs += report.packsRead;
    bytes += report.bytesRead;
  }
  expect([packs, bytes]).toEqual([whole.packsRead, whole.bytesRead]);
});

test("what is read wrongly once is no damage; what is cut short is", async () => {
  const { store } = await newRepository(true);
  const flaky = new FaultyStore(store, { operation: "getRange", key: /^packs/, kind: "corrupt" });
  const report = await scrubbed(flaky);
  flaky.assertAllHit();
  expect(report).toMatchObject({ problems: [], transient: 1 });
  const key = [...store.objects.keys()].find((one) => one.startsWith("packs/"))!;
  const { bytes, lastModified } = store.objects.get(key)!;
  for (const length of [0, 10, 63, 64, 5000, bytes.length - 1]) {
    store.objects.set(key, { bytes: bytes.subarray(0, length), lastModified });
    expect((await scrubbed(store)).problems, `${length} bytes`).toHaveLength(1);
  }
});
