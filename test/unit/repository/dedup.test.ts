import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { BadSlots, badChunks } from "../../../src/repository/bad-slots.ts";
import { Forwards } from "../../../src/repository/forwards.ts";
import { recordDamaged } from "../../../src/repository/damaged.ts";
import { DedupIndex, type DedupScope } from "../../../src/repository/dedup.ts";
import { IndexWriter } from "../../../src/repository/index-objects.ts";
import { DiskMap } from "../../../src/repository/layer-stack.ts";
import { LayerWriter, storeLayer } from "../../../src/repository/layer-writer.ts";
import { indexKey, newUuid, packKey } from "../../../src/repository/names.ts";
import { PackDirectories } from "../../../src/repository/pack-reader.ts";
import type { MemoryStore } from "../../support/memory-store.ts";
import { memoryRepository, SEALINGS } from "../../support/memory-repository.ts";
import { storePacks } from "../../support/packs.ts";

const never = new AbortController().signal;

let folder: string;
let warnings: string[];
let opened: DedupIndex[];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "dedup-"));
  warnings = [];
  opened = [];
});

afterEach(() => {
  for (const index of opened) index.close();
  rmSync(folder, { recursive: true });
});

const file = (): string => join(folder, "cache", "index.sqlite");

async function openIndex(
  repository: ReturnType<typeof memoryRepository>,
  scope: DedupScope = "repository",
  source = "web",
): Promise<DedupIndex> {
  const warn = (message: string): void => void warnings.push(message);
  const index = await DedupIndex.open({ file: file(), repository, scope, source, warn }, never);
  opened.push(index);
  return index;
}

async function syncedIndex(...options: Parameters<typeof openIndex>): Promise<DedupIndex> {
  const index = await openIndex(...options);
  await index.sync(never);
  return index;
}

/** A repository where source "web" has stored three packs and listed them in one index object. */
async function filled(encrypted = false) {
  const repository = memoryRepository({ encrypted });
  const packs = await storePacks(repository, [1, 2, 3], [4, 5], [6]);
  const writer = new IndexWriter(repository, "web");
  for (const pack of packs.completed) await writer.add(pack, never);
  await writer.flush(never);
  return { repository, ...packs };
}

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const item of items) found.push(item);
  return found;
}

function indexObjects(store: MemoryStore): string[] {
  return [...store.objects.keys()].filter((key) => key.startsWith("index/"));
}

test.each(SEALINGS)(
  "what the repository's index objects list is found after a sync ($name)",
  async ({ encrypted }) => {
    const { repository, chunks } = await filled(encrypted);
    const index = await syncedIndex(repository);
    for (const { id, pack, slot } of chunks) expect(index.lookup(id)).toEqual({ pack, slot });
    expect(index.lookup(Buffer.alloc(32, 9))).toBeUndefined();
    expect(warnings).toEqual([]);
  },
);

test("a second sync fetches nothing that is known", async () => {
  const { repository, chunks } = await filled();
  (await syncedIndex(repository)).close();
  const before = repository.store.requests()["GetObject"];
  const index = await syncedIndex(repository);
  expect(repository.store.requests()["GetObject"]).toBe(before);
  expect(index.lookup(chunks[0]!.id)).toMatchObject({ pack: chunks[0]!.pack });
});

describe("R5: a row counts only while its index object is listed", () => {
  test("nothing of an older sync is found before this run's own", async () => {
    const { repository, chunks } = await filled();
    (await syncedIndex(repository)).close();
    const index = await openIndex(repository);
    expect(index.lookup(chunks[0]!.id)).toBeUndefined();
    await index.sync(never);
    expect(index.lookup(chunks[0]!.id)).toBeDefined();
  });

  test("rows go with their object, and stay while another one lists their pack", async () => {
    const { repository, chunks, completed } = await filled();
    (await syncedIndex(repository)).close();
    const [old] = indexObjects(repository.store);
    const kept = new IndexWriter(repository, "web");
    await kept.add(completed[1]!, never);
    await kept.flush(never);
    (await syncedIndex(repository)).close();
    await repository.store.delete([old!], never);
    const index = await syncedIndex(repository);
    const found = chunks.filter(({ id }) => index.lookup(id) !== undefined);
    expect(new Set(found.map(({ pack }) => pack))).toEqual(new Set([completed[1]!.pack]));
    await repository.store.delete(indexObjects(repository.store), never);
    await index.sync(never);
    expect(chunks.filter(({ id }) => index.lookup(id) !== undefined)).toEqual([]);
  });
});

describe("R11: a row enters the database only when its pack is complete", () => {
  test("open packs are known to this run alone; complete ones to others once they are listed", async () => {
    const repository = memoryRepository();
    const { completed, chunks } = await storePacks(repository, [1, 2]);
    const run = await syncedIndex(repository);
    for (const { id, pack, slot } of chunks) run.remember(id, pack, slot);
    const found = async () => (await syncedIndex(repository)).lookup(chunks[0]!.id) !== undefined;

    expect(run.lookup(chunks[0]!.id)).toEqual({ pack: chunks[0]!.pack, slot: 0 });
    expect(await found(), "open").toBe(false);

    run.addPack(completed[0]!);
    expect(run.lookup(chunks[1]!.id)).toEqual({ pack: chunks[1]!.pack, slot: 1 });
    expect(await found(), "complete, not listed").toBe(false);

    const writer = new IndexWriter(repository, "web", {
      onWritten: (key, packs) => run.packsListed(key, packs),
    });
    await writer.add(completed[0]!, never);
    await writer.flush(never);
    const before = repository.store.requests()["GetObject"];
    expect(await found(), "listed").toBe(true);
    expect(repository.store.requests()["GetObject"], "known without being fetched").toBe(before);
  });

  test("a run that died leaves nothing that counts", async () => {
    const repository = memoryRepository();
    const { completed, chunks } = await storePacks(repository, [1, 2]);
    const run = await syncedIndex(repository);
    run.addPack(completed[0]!);
    run.close();
    const next = await syncedIndex(repository);
    expect(next.lookup(chunks[0]!.id)).toBeUndefined();
  });
});

describe("R8: hits are confirmed against the pack's own directory", () => {
  test("a wrong address fails and is not given again", async () => {
    const { repository, chunks } = await filled();
    const index = await syncedIndex(repository);
    const directories = new PackDirectories(repository, { cacheBytes: 1e6 });
    const [first, second] = chunks;
    const good = { ...first! };
    const wrongSlot = { ...second!, slot: 0 };
    const noSlot = { ...second!, slot: 99 };
    expect(await index.confirm([good, wrongSlot, noSlot], directories, never)).toEqual([wrongSlot, noSlot]);
    index.remember(wrongSlot.id, wrongSlot.pack, wrongSlot.slot);
    expect(index.lookup(wrongSlot.id)).toBeUndefined();
    expect(index.lookup(good.id)).toBeDefined();
  });

  test("a pack that is gone or damaged fails all its hits", async () => {
    const { repository, chunks, completed } = await filled();
    const index = await syncedIndex(repository);
    await repository.store.delete([packKey(completed[0]!.pack)], never);
    const damaged = repository.store.objects.get(packKey(completed[1]!.pack))!.bytes;
    damaged[damaged.length - 30]! ^= 1;
    const directories = new PackDirectories(repository, { cacheBytes: 1e6 });
    const failed = await index.confirm(chunks, directories, never);
    expect(failed).toEqual(chunks.slice(0, 5));
    for (const { id } of failed) expect(index.lookup(id)).toBeUndefined();
    expect(index.lookup(chunks[5]!.id)).toBeDefined();
  });
});

describe("R12: damaged slots", () => {
  test("are no duplicates", async () => {
    const { repository, chunks } = await filled();
    const [, bad, good] = chunks;
    await recordDamaged(repository, bad!.pack, [bad!.slot], never);
    const index = await syncedIndex(repository);
    expect(index.lookup(bad!.id)).toBeUndefined();
    expect(index.lookup(good!.id)).toBeDefined();
    const directories = new PackDirectories(repository, { cacheBytes: 1e6 });
    expect(await index.confirm([bad!, good!], directories, never)).toEqual([bad]);
  });

  test.each(SEALINGS)("have their chunks stored again ($name)", async ({ encrypted }) => {
    const { repository, completed } = await filled(encrypted);
    const { pack } = completed[0]!;
    const chunkSize = repository.config.chunkSize;
    const writer = new LayerWriter(10 * chunkSize, chunkSize);
    writer.add(1, 3, { pack, slot: 0 });
    writer.add(4, 1, "zero");
    writer.add(7, 1, { pack, slot: 2 });
    writer.add(9, 1, { pack: completed[2]!.pack, slot: 0 });
    const refs = new Map(completed.map(({ directory }) => [directory.pack, directory.ref]));
    const layers = [await storeLayer(repository, writer, (name) => refs.get(name)!, never)];
    const map = await DiskMap.open(
      repository,
      { name: "vda", size: 10 * chunkSize, chunkSize, layers },
      never,
    );
    const index = await syncedIndex(repository);
    const nothing = { packs: new Set<string>(), forwards: new Set<string>() };
    const bad = ({ damaged }: DedupIndex): BadSlots =>
      new BadSlots(damaged, nothing, new Forwards(repository));
    expect(await all(badChunks(map, bad(index), never))).toEqual([]);
    await recordDamaged(repository, pack, [2], never);
    await recordDamaged(repository, pack, [1], never);
    await index.sync(never);
    expect(await all(badChunks(map, bad(index), never))).toEqual([
      { first: 2, count: 2 },
      { first: 7, count: 1 },
    ]);
  });
});

test("scope source: only what this source's index objects list", async () => {
  const { repository, chunks } = await filled();
  const other = await storePacks(repository, [10]);
  const writer = new IndexWriter(repository, "db");
  await writer.add(other.completed[0]!, never);
  await writer.flush(never);
  const everything = await syncedIndex(repository);
  expect(everything.lookup(chunks[0]!.id)).toBeDefined();
  const own = await syncedIndex(repository, "source", "db");
  expect(own.lookup(chunks[0]!.id)).toBeUndefined();
  expect(own.lookup(other.chunks[0]!.id)).toBeDefined();
  expect(
    (await syncedIndex(repository)).lookup(chunks[0]!.id),
    "not dropped by the narrower sync",
  ).toBeDefined();
});

test("scope off: only what this run stored lately", async () => {
  const { repository, chunks, completed } = await filled();
  const index = await syncedIndex(repository, "off");
  expect(index.lookup(chunks[0]!.id)).toBeUndefined();
  index.remember(chunks[0]!.id, chunks[0]!.pack, 0);
  index.addPack(completed[0]!);
  expect(index.lookup(chunks[0]!.id)).toBeDefined();
});

test("a damaged index object is passed over with a warning", async () => {
  const { repository } = await filled();
  const more = await storePacks(repository, [20]);
  const [key] = indexObjects(repository.store);
  repository.store.objects.get(key!)!.bytes[40]! ^= 1;
  const writer = new IndexWriter(repository, "web");
  await writer.add(more.completed[0]!, never);
  await writer.flush(never);
  const index = await syncedIndex(repository);
  expect(index.lookup(more.chunks[0]!.id)).toBeDefined();
  expect(warnings).toEqual([expect.stringContaining(key!)]);
});

describe("the database never fails a backup", () => {
  test.each([
    [
      "no database at all",
      Buffer.from("not a database, but long enough to look like a file of one".repeat(100)),
    ],
    ["an empty file", Buffer.alloc(0)],
  ])("%s is built anew", async (_what, content) => {
    const { repository, chunks } = await filled();
    (await openIndex(repository)).close();
    writeFileSync(file(), content);
    const index = await syncedIndex(repository);
    expect(index.lookup(chunks[0]!.id)).toBeDefined();
    expect(warnings.length).toBe(content.length === 0 ? 0 : 1);
  });

  test("damage inside the file is found out and the file built anew", async () => {
    const { repository, chunks } = await filled();
    const first = await syncedIndex(repository);
    first.close();
    const bytes = readFileSync(file());
    bytes.fill(0xff, 4096, bytes.length);
    writeFileSync(file(), bytes);
    const index = await syncedIndex(repository);
    expect(warnings).toHaveLength(1);
    expect(index.lookup(chunks[0]!.id)).toBeDefined();
  });

  test("a folder that cannot be made: no cache, one warning", async () => {
    const { repository, chunks, completed } = await filled();
    writeFileSync(join(folder, "cache"), "a file in the way");
    const index = await syncedIndex(repository);
    expect(warnings).toHaveLength(1);
    expect(index.lookup(chunks[0]!.id)).toBeUndefined();
    index.remember(chunks[0]!.id, chunks[0]!.pack, 0);
    index.addPack(completed[0]!);
    index.packsListed(indexKey("web", newUuid()), [completed[0]!.pack]);
    expect(index.lookup(chunks[0]!.id), "twins of this run are still found").toBeDefined();
  });

  test("a file of another repository or version is built anew", async () => {
    const { repository, chunks } = await filled();
    (await syncedIndex(repository)).close();
    const other = { ...memoryRepository(), config: { ...repository.config, repository: newUuid() } };
    const index = await syncedIndex(other);
    expect(index.lookup(chunks[0]!.id)).toBeUndefined();
  });

  test("two processes use one file at the same time", async () => {
    const { repository, chunks } = await filled();
    const script = join(import.meta.dirname, "../../support/dedup-process.ts");
    const processes = [1, 2].map((seed) =>
      spawn(process.execPath, [script, file(), String(seed)], { stdio: "inherit" }),
    );
    const exits = processes.map((child) => once(child, "exit"));
    for (let round = 0; round < 20; round++) {
      const index = await syncedIndex(repository);
      for (const { id, pack, slot } of chunks) expect(index.lookup(id)).toEqual({ pack, slot });
      index.close();
    }
    expect((await Promise.all(exits)).map(([code]: unknown[]) => code)).toEqual([0, 0]);
    expect(warnings).toEqual([]);
  });
});
