import { KiB, MiB } from "../bytes/size.ts";

/** A part of a disk that its partition table names. */
export interface Partition {
  /** As Linux counts them, from 1. */
  readonly number: number;
  /** Bytes. */
  readonly offset: number;
  readonly length: number;
}

/** Reads bytes of a disk, all of them inside of it. */
export type ReadBytes = (offset: number, length: number) => Promise<Buffer>;

const SECTOR = 512;
/** GPT counts in the disk's own sectors. */
const SECTORS = [512, 4096] as const;
const GPT_ENTRIES_MAX = 1024;
const GPT_ENTRY_MAX = 4096;
/** Logical partitions that are followed in their chain. */
const LOGICAL_MAX = 128;
/** Types of MBR partitions that hold others. */
const EXTENDED: ReadonlySet<number> = new Set([0x05, 0x0f, 0x85]);
const PROTECTIVE = 0xee;

/**
 * The partitions of a disk, by GPT or MBR; none for a disk without a table. Entries that do not fit the disk are left
 * out.
 *
 * @param size of the disk, bytes.
 */
export async function findPartitions(size: number, read: ReadBytes): Promise<Partition[]> {
  if (size < 8 * KiB) return [];
  const mbr = await read(0, SECTOR);
  if (mbr.readUInt16LE(510) !== 0xaa55) return [];
  const entries = entriesOf(mbr);
  // a boot sector of FAT or NTFS ends like this too, with code in place of entries
  if (entries.some(({ status }) => (status & 0x7f) !== 0)) return [];
  const fits = ({ offset, length }: Partition): boolean =>
    length > 0 && offset > 0 && offset + length <= size;
  if (entries.some(({ type }) => type === PROTECTIVE)) return (await gptPartitions(size, read)).filter(fits);
  const found: Partition[] = [];
  for (const [index, { type, first, sectors }] of entries.entries()) {
    if (type === 0) continue;
    if (EXTENDED.has(type)) found.push(...(await logicalPartitions(first, size, read)));
    else found.push({ number: index + 1, offset: first * SECTOR, length: sectors * SECTOR });
  }
  return found.filter(fits).sort((a, b) => a.number - b.number);
}

/** The four entries of an MBR, or of the sector before a logical partition; all in sectors of 512 bytes. */
function entriesOf(sector: Buffer): { status: number; type: number; first: number; sectors: number }[] {
  return [0, 1, 2, 3].map((index) => {
    const at = 446 + 16 * index;
    return {
      status: sector.readUInt8(at),
      type: sector.readUInt8(at + 4),
      first: sector.readUInt32LE(at + 8),
      sectors: sector.readUInt32LE(at + 12),
    };
  });
}

/** UEFI 2.10, 5.3: header in the second sector; entries where it says. */
async function gptPartitions(size: number, read: ReadBytes): Promise<Partition[]> {
  for (const sector of SECTORS) {
    const header = await read(sector, SECTOR);
    if (header.toString("latin1", 0, 8) !== "EFI PART") continue;
    const start = Number(header.readBigUInt64LE(72)) * sector;
    const [count, entrySize] = [header.readUInt32LE(80), header.readUInt32LE(84)];
    const total = count * entrySize;
    if (count > GPT_ENTRIES_MAX || entrySize < 128 || entrySize > GPT_ENTRY_MAX || total > MiB) return [];
    if (start < 2 * sector || start + total > size) return [];
    const table = await read(start, total);
    const found: Partition[] = [];
    for (let index = 0; index < count; index++) {
      const entry = table.subarray(index * entrySize, (index + 1) * entrySize);
      if (entry.subarray(0, 16).every((byte) => byte === 0)) continue;
      const first = Number(entry.readBigUInt64LE(32));
      const last = Number(entry.readBigUInt64LE(40));
      found.push({ number: index + 1, offset: first * sector, length: (last - first + 1) * sector });
    }
    return found;
  }
  return [];
}

/** Each is described in a sector before it, which also leads to the next such sector; those only ever go on. */
async function logicalPartitions(first: number, size: number, read: ReadBytes): Promise<Partition[]> {
  const found: Partition[] = [];
  let at = first;
  for (let number = 5; number < 5 + LOGICAL_MAX; number++) {
    if (at === 0 || (at + 1) * SECTOR > size) break;
    const sector = await read(at * SECTOR, SECTOR);
    if (sector.readUInt16LE(510) !== 0xaa55) break;
    const [own, next] = entriesOf(sector);
    if (own!.type !== 0) {
      found.push({ number, offset: (at + own!.first) * SECTOR, length: own!.sectors * SECTOR });
    }
    const following = first + next!.first;
    if (next!.type === 0 || following <= at) break;
    at = following;
  }
  return found;
}
