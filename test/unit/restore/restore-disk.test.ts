import { once } from "node:events";
import { expect, test } from "vitest";
import { AppError } from "../../../src/errors.ts";
import { packKey } from "../../../src/repository/names.ts";
import { restoreDisk } from "../../../src/restore/restore-disk.ts";
import { FaultyStore } from "../../support/faulty-store.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import { MemoryTarget } from "../../support/scripted-disk.ts";
import { CHUNK, diskOf, newBackups, numbers } from "../backup/chunks.ts";

const quiet = (): void => undefined;

test("each byte is written once, in whatever order packs come, and flushed at the end", async () => {
  const backups = await newBackups({ packChunks: 4 });
  const contents = [5, 1, 0, 1, 2, 0, 0, 3, 1, 4, 4, 4];
  const disk = diskOf(contents);
  const { manifest } = await backups.backup([disk]);
  const target = new MemoryTarget(disk.size);
  const stats = await restoreDisk(manifest.disks[0]!, target, backups.tools(), new AbortController(), quiet);
  expect(target.bytes.equals(disk.bytes)).toBe(true);
  expect(stats).toEqual({ bytesWritten: 9 * CHUNK, bytesZero: 3 * CHUNK, chunksWritten: 9 });
  expect(target.flushed).toBe(1);
});

test("neighbours in a pack come with one request", async () => {
  const backups = await newBackups();
  const disk = diskOf(numbers(1, 13));
  const { manifest } = await backups.backup([disk]);
  let ranges = 0;
  const store = new HookedStore(backups.store, {
    before: (operation) => void (ranges += Number(operation === "getRange")),
  });
  const target = new MemoryTarget(disk.size);
  await restoreDisk(manifest.disks[0]!, target, backups.tools(store), new AbortController(), quiet);
  expect(ranges).toBe(1);
});

test("one bit of a pack: the error names the pack and the slot, and nothing is flushed", async () => {
  const backups = await newBackups();
  const disk = diskOf(numbers(1, 9));
  const { manifest } = await backups.backup([disk]);
  const key = [...backups.store.objects.keys()].find((name) => name.startsWith("packs/"))!;
  backups.store.bytes(key)[3 * CHUNK + 500]! ^= 4;
  const target = new MemoryTarget(disk.size);
  const restoring = restoreDisk(manifest.disks[0]!, target, backups.tools(), new AbortController(), quiet);
  const pack = key.slice(packKey("").length);
  await expect(restoring).rejects.toMatchObject({ kind: "corrupt", context: { pack, slot: 3 } });
  await expect(restoring).rejects.toThrow(`Pack ${pack} is damaged at slot 3`);
  expect(target.flushed).toBe(0);
});

test.each(["before", "corrupt", "truncate"] as const)(
  "a ranged GET that fails (%s) fails the restore",
  async (kind) => {
    const backups = await newBackups();
    const disk = diskOf(numbers(1, 9));
    const { manifest } = await backups.backup([disk]);
    const store = new FaultyStore(backups.store, { operation: "getRange", kind });
    const target = new MemoryTarget(disk.size);
    const restoring = restoreDisk(
      manifest.disks[0]!,
      target,
      backups.tools(store),
      new AbortController(),
      quiet,
    );
    await expect(restoring).rejects.toMatchObject({ kind: kind === "before" ? "unavailable" : "corrupt" });
    store.assertAllHit();
    expect(target.flushed).toBe(0);
  },
);

test("a target that fails is the error told; requests that wait are stopped", async () => {
  const backups = await newBackups({ packChunks: 4 });
  const disk = diskOf(numbers(1, 25));
  const { manifest } = await backups.backup([disk]);
  const failure = new AppError("full", "E_TARGET_FULL", "The target is full");
  class FullTarget extends MemoryTarget {
    override write(offset: number, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
      return offset === 0 ? Promise.reject(failure) : super.write(offset, bytes, signal);
    }
  }
  const run = new AbortController();
  let ranges = 0;
  let waiting = 0;
  const store = new HookedStore(backups.store, {
    before: async (operation) => {
      if (operation !== "getRange" || ++ranges === 1) return;
      waiting++;
      if (!run.signal.aborted) await once(run.signal, "abort");
      waiting--;
    },
  });
  const restoring = restoreDisk(
    manifest.disks[0]!,
    new FullTarget(disk.size),
    backups.tools(store),
    run,
    quiet,
  );
  await expect(restoring).rejects.toBe(failure);
  expect(waiting).toBe(0);
  const again = await backups.restore(manifest.disks[0]!); // the threads are fit for use
  expect(again.equals(disk.bytes)).toBe(true);
});

test("an abort ends a restore that hangs, with its reason", async () => {
  const backups = await newBackups();
  const { manifest } = await backups.backup([diskOf(numbers(1, 9))]);
  const store = new FaultyStore(backups.store, { operation: "getRange", kind: "hang" });
  const run = new AbortController();
  const reason = new AppError("cancelled", "E_INTERRUPTED", "Interrupted");
  const watched = new HookedStore(store, {
    before: (operation) => {
      if (operation === "getRange") setImmediate(() => run.abort(reason));
    },
  });
  const target = new MemoryTarget(8 * CHUNK);
  const restoring = restoreDisk(manifest.disks[0]!, target, backups.tools(watched), run, quiet);
  await expect(restoring).rejects.toBe(reason);
});
