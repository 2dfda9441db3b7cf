import { expect, test } from "vitest";
import type { Extent } from "../../../src/disk/disk.ts";
import { noise } from "../../support/random-disk.ts";
import { ScriptedDisk } from "../../support/scripted-disk.ts";
import { CHUNK, chunksOf, expectSame, newBackups } from "./chunks.ts";

/** One extent a letter, each a chunk long: d(ata), z(ero), u(nchanged). */
function map(letters: string): Extent[] {
  const states = { d: "data", z: "zero", u: "unchanged" } as const;
  return Array.from(letters).map((letter, index) => ({
    offset: index * CHUNK,
    length: CHUNK,
    state: states[letter as keyof typeof states],
  }));
}

test("a chunk that became zero is recorded as zero, read or not, and written as zero over garbage", async () => {
  const backups = await newBackups();
  const before = new ScriptedDisk("vda", chunksOf(1, 2, 3, 4));
  const parent = (await backups.backup([before])).manifest;
  // chunk 0 is said to be zero, chunk 1 is found to be zero, chunk 2 is unchanged, chunk 3 is new
  const after = new ScriptedDisk("vda", chunksOf(0, 0, 3, 5), { extents: map("zdud") });
  const { manifest } = await backups.backup([after], { bitmap: "b0", parent: parent.generation });
  const disk = manifest.disks[0]!;
  expectSame(await backups.restore(disk), after.bytes);
  expect(after.reads).toEqual([
    { offset: CHUNK, length: CHUNK },
    { offset: 3 * CHUNK, length: CHUNK },
  ]);
  expect(disk.counts).toMatchObject({ chunksRead: 2, chunksZero: 2, chunksUnchanged: 0, chunksStored: 1 });
});

test("a rescan tells a chunk that was zero already from one that became zero", async () => {
  const backups = await newBackups();
  await backups.backup([new ScriptedDisk("vda", chunksOf(1, 0, 3, 0, 5))]);
  const after = new ScriptedDisk("vda", chunksOf(0, 0, 0, 0, 5), { extents: map("zzddd") });
  const { manifest, stats } = await backups.backup([after]);
  expect(manifest.disks[0]!.counts).toMatchObject({ chunksRead: 3, chunksZero: 2, chunksUnchanged: 3 });
  expect(stats.bytesZero).toBe(2 * CHUNK);
  expectSame(await backups.restore(manifest.disks[0]!), after.bytes);
});

test("a full reads what is allocated, and nothing else", async () => {
  const backups = await newBackups();
  const disk = new ScriptedDisk("vda", chunksOf(0, 2, 0, 0), { extents: map("zdzz") });
  const { manifest } = await backups.backup([disk]);
  expect(disk.reads).toEqual([{ offset: CHUNK, length: CHUNK }]);
  expectSame(await backups.restore(manifest.disks[0]!), disk.bytes);
});

test("a chunk that is part zero and part unchanged is read", async () => {
  const backups = await newBackups();
  const parent = (await backups.backup([new ScriptedDisk("vda", chunksOf(1, 2))])).manifest;
  const bytes = chunksOf(1, 2);
  bytes.fill(0, CHUNK, CHUNK + 512);
  const extents: Extent[] = [
    { offset: 0, length: CHUNK, state: "unchanged" },
    { offset: CHUNK, length: 512, state: "zero" },
    { offset: CHUNK + 512, length: CHUNK - 512, state: "unchanged" },
  ];
  const after = new ScriptedDisk("vda", bytes, { extents });
  const { manifest } = await backups.backup([after], { bitmap: "b0", parent: parent.generation });
  expectSame(await backups.restore(manifest.disks[0]!), bytes);
  expect(after.reads).toEqual([{ offset: CHUNK, length: CHUNK }]);
});

test("R9: a disk that shrank and grew again does not bring old bytes back, whatever the bitmap says", async () => {
  const backups = await newBackups();
  const sizes = [3 * CHUNK, CHUNK + 100, 4 * CHUNK + 7, 4 * CHUNK + 9];
  let parent: string | undefined;
  for (const size of sizes) {
    const bytes = Buffer.alloc(size);
    chunksOf(1, 2, 3).copy(bytes, 0, 0, parent === undefined ? size : Math.min(size, CHUNK + 100));
    const extents: Extent[] = [
      { offset: 0, length: size, state: parent === undefined ? "data" : "unchanged" },
    ];
    const disk = new ScriptedDisk("vda", bytes, { extents });
    const { manifest } = await backups.backup([disk], parent === undefined ? {} : { bitmap: "b0", parent });
    expectSame(await backups.restore(manifest.disks[0]!), bytes);
    parent = manifest.generation;
  }
});

test("what a run looked at is counted once, for each disk and in all", async () => {
  const backups = await newBackups();
  const vda = chunksOf(1, 0, 3, 0, 1);
  const vdb = Buffer.concat([chunksOf(3, 3, 0), noise(9, 1000)]);
  await backups.backup([new ScriptedDisk("vda", vda), new ScriptedDisk("vdb", vdb)]);
  chunksOf(4).copy(vda, CHUNK);
  vdb.fill(0, 0, CHUNK);
  const disks = [
    new ScriptedDisk("vda", vda, { extents: map("dddzd") }),
    new ScriptedDisk("vdb", vdb),
  ] as const;
  const { manifest, stats } = await backups.backup(disks);
  expect(manifest.disks.map(({ counts }) => counts)).toMatchObject([
    { chunksRead: 4, chunksZero: 0, chunksUnchanged: 4, chunksDeduplicated: 0, chunksStored: 1 },
    { chunksRead: 4, chunksZero: 1, chunksUnchanged: 3, chunksDeduplicated: 0, chunksStored: 0 },
  ]);
  const said = CHUNK; // of vda, zero without a read
  expect(stats.bytesRead + said).toBe(
    stats.bytesZero + stats.bytesUnchanged + stats.bytesDeduplicated + stats.bytesStored,
  );
  expect(stats.bytesRead).toBe(vda.length + vdb.length - said);
});
