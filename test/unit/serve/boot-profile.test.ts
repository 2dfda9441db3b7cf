import { expect, test, vi } from "vitest";
import { MiB } from "../../../src/bytes/size.ts";
import { AppError } from "../../../src/errors.ts";
import type { Manifest } from "../../../src/repository/manifest.ts";
import { Prefix } from "../../../src/repository/names.ts";
import { loadProfile } from "../../../src/repository/profiles.ts";
import { openExports, type Exports } from "../../../src/serve/exports.ts";
import type { ObjectStore } from "../../../src/store/store.ts";
import type { Backups } from "../../support/backups.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import { seeded } from "../../support/seeded.ts";
import { CHUNK, chunksOf, diskOf, expectSame, newBackups, numbers } from "../backup/chunks.ts";
import { readAt } from "./generation-disks.ts";

const { signal } = new AbortController();

async function open(
  backups: Backups,
  manifest: Manifest,
  said: string[],
  store?: ObjectStore,
): Promise<Exports> {
  const profile = { say: (message: string) => void said.push(message) };
  return await openExports(
    backups.tools(store),
    manifest,
    manifest.disks,
    { cacheBytes: 64 * MiB, profile },
    signal,
  );
}

/** Serves once, and reads these chunks one after the other. */
async function serveAndRead(
  backups: Backups,
  manifest: Manifest,
  chunks: readonly number[],
  store?: ObjectStore,
): Promise<string[]> {
  const said: string[] = [];
  const exports = await open(backups, manifest, said, store);
  for (const chunk of chunks) await readAt(exports.disks.get("vda")!, chunk * CHUNK + 100, 50);
  await exports.close();
  return said;
}

async function readsOf(backups: Backups): Promise<number[] | undefined> {
  const { profile } = await loadProfile(backups.repository, "web", signal);
  return profile?.reads.flatMap(([, first, count]) => numbers(first, first + count));
}

function shuffled(seed: number, from: number, to: number): number[] {
  const random = seeded(seed);
  return numbers(from, to)
    .map((chunk) => ({ chunk, at: random(1_000_000) }))
    .sort((a, b) => a.at - b.at)
    .map(({ chunk }) => chunk);
}

test("what one serve's client reads, the next serve fetches before anybody asks; of a later generation too", async () => {
  const backups = await newBackups({ packChunks: 8 });
  const contents = [...numbers(1, 101), 0, 0];
  const { manifest } = await backups.backup([diskOf(contents)]);
  const order = shuffled(1, 0, 32);
  expect(await serveAndRead(backups, manifest, [...order, 100, ...order])).toEqual([]); // zeros are no reads
  expect(await readsOf(backups)).toEqual(order);

  const changed = contents.map((content, chunk) => (chunk < 5 ? content + 500 : content));
  const { manifest: later } = await backups.backup([diskOf(changed)]);
  const packs = new Set<string>();
  let isAway = false;
  const store = new HookedStore(backups.store, {
    before: (operation, key) => {
      if (operation !== "getRange" || !key.startsWith(Prefix.packs)) return;
      if (isAway) throw new AppError("credentials", "E_ACCESS", "Nothing more is handed out");
      packs.add(key);
    },
  });
  const exports = await open(backups, later, [], store);
  const disk = exports.disks.get("vda")!;
  await vi.waitUntil(() => packs.size === 6); // a new one, and the five of chunks 5 to 31, seven in each
  isAway = true;
  const reads = order.map((chunk) => readAt(disk, chunk * CHUNK, CHUNK));
  for (const [index, bytes] of (await Promise.all(reads)).entries())
    expectSame(bytes, chunksOf(changed[order[index]!]!));
  isAway = false;
  expect(packs.size).toBe(6);
  await exports.close();
  expect(await readsOf(backups)).toEqual(order);
});

test("it is replaced by a serve that read about as much; not by a look, nor by a copy", async () => {
  const backups = await newBackups({ packChunks: 64 });
  const { manifest } = await backups.backup([diskOf(numbers(1, 301))]);
  await serveAndRead(backups, manifest, numbers(0, 20));
  expect(await readsOf(backups)).toBeUndefined();
  const boot = shuffled(2, 0, 140);
  await serveAndRead(backups, manifest, boot);
  expect(await readsOf(backups)).toEqual(boot);
  await serveAndRead(backups, manifest, numbers(200, 234)); // a quarter of it would be 35
  expect(await readsOf(backups)).toEqual(boot);
  await serveAndRead(backups, manifest, numbers(0, 300));
  expect(await readsOf(backups)).toEqual(boot);
  const next = shuffled(3, 100, 200);
  await serveAndRead(backups, manifest, next);
  expect(await readsOf(backups)).toEqual(next);
  expect([...backups.store.objects.keys()].filter((key) => key.startsWith(Prefix.profiles))).toHaveLength(1);
});

test("who may not write, or not list, goes without", async () => {
  const backups = await newBackups();
  const { manifest } = await backups.backup([diskOf(numbers(1, 60))]);
  const refused = (operation: string): HookedStore =>
    new HookedStore(backups.store, {
      before: (one, key) => {
        if (one === operation && key.startsWith(Prefix.profiles))
          throw new AppError("credentials", "E_ACCESS", "It is not allowed");
      },
    });
  const put = await serveAndRead(backups, manifest, numbers(0, 50), refused("put"));
  expect(put).toEqual(["What was read is not recorded for the next serve: It is not allowed"]);
  const list = await serveAndRead(backups, manifest, numbers(0, 50), refused("list"));
  expect(list).toEqual(["There is no profile to read ahead by: It is not allowed"]);
  expect(await readsOf(backups)).toBeUndefined();
});
