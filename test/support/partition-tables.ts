/** A partition, in sectors of 512 bytes. */
export interface PartitionEntry {
  readonly first: number;
  readonly sectors: number;
  readonly type?: number;
}

const SECTOR = 512;

/** A sector with the table of an MBR. */
export function mbrSector(entries: readonly PartitionEntry[]): Buffer {
  const sector = Buffer.alloc(SECTOR);
  for (const [index, { first, sectors, type = 0x83 }] of entries.entries()) {
    const at = 446 + 16 * index;
    sector[at + 4] = type;
    sector.writeUInt32LE(first, at + 8);
    sector.writeUInt32LE(sectors, at + 12);
  }
  sector.writeUInt16LE(0xaa55, 510);
  return sector;
}

/** Protective MBR, header and entries of a GPT, as they lie at the beginning of a disk. */
export function gptHead(entries: readonly PartitionEntry[], sector = SECTOR): Buffer {
  const head = Buffer.alloc(2 * sector + 128 * 128);
  mbrSector([{ first: 1, sectors: 0xffffffff, type: 0xee }]).copy(head);
  head.write("EFI PART", sector, "latin1");
  head.writeBigUInt64LE(2n, sector + 72);
  head.writeUInt32LE(128, sector + 80);
  head.writeUInt32LE(128, sector + 84);
  for (const [index, { first, sectors }] of entries.entries()) {
    if (sectors === 0) continue;
    const at = 2 * sector + 128 * index;
    head.fill(0x11, at, at + 32);
    head.writeBigUInt64LE(BigInt(first), at + 32);
    head.writeBigUInt64LE(BigInt(first + sectors - 1), at + 40);
  }
  return head;
}
