import { expect, test } from "vitest";
import { estimateBackup } from "../../../src/backup/estimate.ts";
import type { RunStats } from "../../../src/backup/request.ts";
import type { DiskSource } from "../../../src/disk/disk.ts";
import type { Backups, RunOptions } from "../../support/backups.ts";
import { CHUNK, diskOf, newBackups, numbers } from "./chunks.ts";

const never = new AbortController().signal;

interface Held {
  readonly estimate: Awaited<ReturnType<typeof estimateBackup>>;
  readonly stats: RunStats;
}

/** Estimates a backup, sees that nothing was written, and then makes it. */
async function heldAgainst(
  backups: Backups & { readonly store: { readonly objects: ReadonlyMap<string, unknown> } },
  disk: () => DiskSource,
  options: RunOptions = {},
): Promise<Held> {
  const keys = [...backups.store.objects.keys()];
  const estimate = await estimateBackup(backups.request([disk()], options), never);
  expect([...backups.store.objects.keys()]).toEqual(keys);
  const requestsBefore = backups.repository.store.requests();
  const { stats } = await backups.backup([disk()], options);
  const { read, upload, requests } = estimate;
  expect(stats.bytesRead).toBeLessThanOrEqual(read.max);
  expect(stats.bytesPacked + stats.metadataBytes).toBeLessThanOrEqual(upload.max + 4096); // small objects
  expect(read.likely ?? 0).toBeLessThanOrEqual(read.max);
  expect(upload.likely ?? 0).toBeLessThanOrEqual(upload.max);
  const sent = (operation: string): number =>
    (stats.requests[operation] ?? 0) - (requestsBefore[operation] ?? 0);
  expect(sent("UploadPart")).toBeLessThanOrEqual(requests.max["UploadPart"] ?? 0);
  expect(sent("CreateMultipartUpload")).toBeLessThanOrEqual(requests.max["CreateMultipartUpload"] ?? 0);
  return { estimate, stats };
}

test("a first backup: what is allocated, and nothing tells how much of it is stored", async () => {
  const backups = await newBackups();
  const extents = [
    { offset: 0, length: 20 * CHUNK, state: "data" },
    { offset: 20 * CHUNK, length: 12 * CHUNK, state: "zero" },
  ] as const;
  const contents = [...numbers(1, 21), ...Array<number>(12).fill(0)];
  const { estimate, stats } = await heldAgainst(backups, () => diskOf(contents, { extents: [...extents] }));
  expect(estimate).toMatchObject({
    source: "web",
    disks: [{ kind: "full", reason: "first generation of web", size: 32 * CHUNK, basis: null }],
    read: { max: 20 * CHUNK, likely: 20 * CHUNK },
    upload: { likely: null },
    requests: { likely: null },
  });
  expect(stats.bytesRead).toBe(20 * CHUNK);
});

test("a rescan is likely what the rescan before it was; a full is not told by it", async () => {
  const backups = await newBackups();
  const contents = numbers(1, 41);
  await backups.backup([diskOf(contents)]);
  const first = await heldAgainst(backups, () => diskOf([100, 101, ...contents.slice(2)]));
  expect(first.estimate.disks).toMatchObject([{ kind: "rescan", basis: null, upload: { likely: null } }]);
  const second = await heldAgainst(backups, () => diskOf([200, 201, ...contents.slice(2)]));
  const newest = (await backups.generations()).at(-2)!.generation;
  expect(second.estimate.disks).toMatchObject([{ kind: "rescan", basis: newest }]);
  const { read, upload } = second.estimate;
  expect(read).toEqual({ max: 40 * CHUNK, likely: 40 * CHUNK });
  expect(upload.likely!).toBeGreaterThanOrEqual(second.stats.bytesPacked);
  expect(upload.likely!).toBeLessThan(3 * CHUNK);
  const full = await heldAgainst(backups, () => diskOf(contents), { full: true });
  expect(full.estimate.disks[0]!.kind).toBe("full");
  expect(full.estimate.upload.likely!).toBeGreaterThan(39 * CHUNK); // by the first, whose chunks were all new
});

test("with a bitmap only what it names, in whole chunks", async () => {
  const backups = await newBackups();
  const contents = numbers(1, 11);
  await backups.backup([diskOf(contents)]);
  const extents = [
    { offset: 0, length: CHUNK - 1, state: "unchanged" },
    { offset: CHUNK - 1, length: 2, state: "data" },
    { offset: CHUNK + 1, length: 9 * CHUNK - 1, state: "unchanged" },
  ] as const;
  const { estimate, stats } = await heldAgainst(backups, () => diskOf(contents, { extents: [...extents] }), {
    bitmap: "b",
    parent: "web",
  });
  expect(estimate).toMatchObject({
    disks: [{ kind: "incremental" }],
    read: { max: 2 * CHUNK, likely: 2 * CHUNK },
  });
  expect(stats.bytesRead).toBe(2 * CHUNK);
});
