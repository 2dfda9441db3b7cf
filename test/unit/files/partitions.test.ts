import { expect, test } from "vitest";
import { MiB } from "../../../src/bytes/size.ts";
import { findPartitions, type Partition } from "../../../src/files/partitions.ts";
import { gptHead, mbrSector, type PartitionEntry } from "../../support/partition-tables.ts";
import { seeded } from "../../support/seeded.ts";

const SIZE = 16 * MiB;

async function found(pieces: readonly (readonly [number, Buffer])[], size = SIZE): Promise<Partition[]> {
  const disk = Buffer.alloc(size);
  for (const [at, bytes] of pieces) bytes.copy(disk, at);
  return await findPartitions(size, (offset, length) => {
    if (offset < 0 || offset + length > size) throw new Error(`read of ${offset}+${length} is outside`);
    return Promise.resolve(Buffer.from(disk.subarray(offset, offset + length)));
  });
}

test("GPT: by number, with gaps, in the disk's sectors", async () => {
  const entries = [
    { first: 2048, sectors: 2048 },
    { first: 0, sectors: 0 },
    { first: 8192, sectors: 16 },
  ];
  expect(await found([[0, gptHead(entries)]])).toEqual([
    { number: 1, offset: MiB, length: MiB },
    { number: 3, offset: 4 * MiB, length: 8192 },
  ]);
  expect(await found([[0, gptHead([{ first: 256, sectors: 4 }], 4096)]])).toEqual([
    { number: 1, offset: MiB, length: 16384 },
  ]);
});

test("MBR: primary partitions, and logical ones down their chain", async () => {
  const table = mbrSector([
    { first: 2048, sectors: 2048 },
    { first: 8192, sectors: 16384, type: 0x0f },
  ]);
  const first = mbrSector([
    { first: 64, sectors: 100 },
    { first: 2048, sectors: 1000, type: 0x05 },
  ]);
  const second = mbrSector([{ first: 64, sectors: 200 }]);
  const at = (sector: number): number => sector * 512;
  const pieces = [[0, table] as const, [at(8192), first] as const, [at(10240), second] as const];
  expect(await found(pieces)).toEqual([
    { number: 1, offset: MiB, length: MiB },
    { number: 5, offset: at(8192 + 64), length: at(100) },
    { number: 6, offset: at(10240 + 64), length: at(200) },
  ]);
});

test("none: no table, a boot sector of a file system, a disk too small for one", async () => {
  const boot = mbrSector([]);
  boot.fill(0xeb, 440, 500);
  expect(await found([])).toEqual([]);
  expect(await found([[0, boot]])).toEqual([]);
  expect(await found([[0, mbrSector([{ first: 1, sectors: 1 }])]], 4096)).toEqual([]);
});

test.each<[string, readonly PartitionEntry[]]>([
  ["that begins behind the end", [{ first: SIZE / 512, sectors: 8 }]],
  ["that ends behind it", [{ first: 2048, sectors: SIZE / 512 }]],
])("a partition is left out %s", async (_, entries) => {
  expect(await found([[0, mbrSector(entries)]])).toEqual([]);
  expect(await found([[0, gptHead(entries)]])).toEqual([]);
});

test("a chain that leads back to itself ends", async () => {
  const table = mbrSector([{ first: 8192, sectors: 16384, type: 0x05 }]);
  const round = mbrSector([
    { first: 64, sectors: 100 },
    { first: 0, sectors: 1000, type: 0x05 },
  ]);
  expect(
    await found([
      [0, table],
      [8192 * 512, round],
    ]),
  ).toHaveLength(1);
});

test("whatever a table says, nothing outside of the disk is read or found", async () => {
  for (let seed = 1; seed <= 300; seed++) {
    const random = seeded(seed);
    const head =
      random(2) === 0 ? gptHead([{ first: 40, sectors: 8 }]) : mbrSector([{ first: 9, sectors: 9, type: 5 }]);
    for (let change = 0; change < 6; change++) head[random(Math.min(head.length, 1200))] = random(256);
    head.writeUInt16LE(0xaa55, 510);
    for (const { offset, length } of await found([[0, head]], MiB)) {
      expect(offset + length, `seed ${seed}`).toBeLessThanOrEqual(MiB);
      expect(length, `seed ${seed}`).toBeGreaterThan(0);
    }
  }
});
