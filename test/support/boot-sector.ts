const SECTOR = 512;
const LOADED_AT = 0x7c00;
const PARAMETERS = 0x60;
const STEP = 64;

/** What the guest of `bootSector` writes. */
export const GUEST_BYTE = 0xa5;

/**
 * The smallest guest that writes: the first sector of a disk, with a program that the BIOS starts. It overwrites the
 * disk it lies on from `start` to `end` with `GUEST_BYTE`, 32 KiB after 32 KiB, tries what fails again, and then
 * halts.
 *
 * @param start and `end` in bytes, multiples of 32 KiB.
 */
export function bootSector(start: number, end: number): Buffer {
  const lba = LOADED_AT + PARAMETERS + 8;
  const program = [
    [0xfa], // cli
    [0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0], // ds = ss = 0
    [0xbc, ...u16(LOADED_AT)], // sp
    [0xfb], // sti
    [0xb8, ...u16(0x1000), 0x8e, 0xc0, 0x31, 0xff], // es:di = 0x1000:0
    [0xb9, ...u16(STEP * SECTOR), 0xb0, GUEST_BYTE, 0xf3, 0xaa], // fill the buffer
    // next:
    [0xb8, ...u16(0x4300), 0xb2, 0x80], // extended write, first disk
    [0xbe, ...u16(LOADED_AT + PARAMETERS), 0xcd, 0x13], // int 0x13
    [0x72, 0xf4], // jc next
    [0x66, 0x81, 0x06, ...u16(lba), ...u32(STEP)], // lba += STEP
    [0x66, 0x81, 0x3e, ...u16(lba), ...u32(end / SECTOR)], // lba == end?
    [0x75, 0xe0], // jne next
    [0xf4, 0xeb, 0xfd], // halt, for good
  ].flat();
  const parameters = [0x10, 0, ...u16(STEP), ...u16(0), ...u16(0x1000), ...u32(start / SECTOR), ...u32(0)];
  const sector = Buffer.alloc(SECTOR);
  Buffer.from(program).copy(sector, 0);
  Buffer.from(parameters).copy(sector, PARAMETERS);
  sector.writeUInt16LE(0xaa55, SECTOR - 2);
  return sector;
}

function u16(value: number): number[] {
  return [value & 0xff, value >> 8];
}

function u32(value: number): number[] {
  return [...u16(value & 0xffff), ...u16(value >>> 16)];
}
