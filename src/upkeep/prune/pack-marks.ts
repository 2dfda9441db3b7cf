import { AppError } from "../../errors.ts";
import { uuidBytes, uuidText } from "../../repository/names.ts";
import type { PackRef } from "../../repository/pack-directory.ts";

const ID_SIZE = 16;
const DIGEST_SIZE = 32;

/** A pack that layers name, and which of its slots they mention. */
export interface MarkedPack {
  readonly packRef: PackRef;
  /** A bit a slot, the lowest of a byte first; a view that later marks change. */
  readonly bits: Uint8Array;
  readonly liveSlots: number;
  /** Stored bytes of these slots as if all slots of the pack were equally long: their lengths stand in its directory. */
  readonly liveBytes: number;
}

/**
 * Which slots of which packs are mentioned: a bit a slot and 72 bytes a pack, in typed arrays that grow by doubling, since
 * 100 TiB are 1.6 million packs and 420 million slots.
 *
 * Packs are found by their UUIDs, which are random, in a table with open addressing.
 */
export class PackMarks {
  #count = 0;
  #ids = Buffer.alloc(ID_SIZE * 64);
  #digests = Buffer.alloc(DIGEST_SIZE * 64);
  #slotCounts = new Uint32Array(64);
  #blobBytes = new Float64Array(64);
  /** Where each pack's bits begin, bytes. */
  #bitsAt = new Float64Array(64);
  /** Number of a pack + 1; 0 is free. Its length is a power of two and more than the packs. */
  #table = new Uint32Array(256);
  #bits = new Uint8Array(4096);
  #bitsUsed = 0;

  /** How many packs are mentioned. */
  get size(): number {
    return this.#count;
  }

  /** Bytes of memory. */
  get memoryBytes(): number {
    const columns = [this.#ids, this.#digests, this.#slotCounts, this.#blobBytes, this.#bitsAt];
    return [...columns, this.#table, this.#bits].reduce((sum, { byteLength }) => sum + byteLength, 0);
  }

  /**
   * The number of a pack, for `mark`; it is entered when it is new, with no slot marked.
   * @throws AppError E_PACK_CONFLICT (corrupt): another layer says something else of the pack.
   */
  enter(packRef: PackRef): number {
    const id = uuidBytes(packRef.pack);
    const known = this.#find(id);
    if (known !== undefined) {
      this.#checkSame(known, packRef);
      return known;
    }
    if (this.#count === this.#slotCounts.length) this.#growColumns();
    const number = this.#count++;
    const bitsLength = Math.ceil(packRef.slotCount / 8);
    while (this.#bitsUsed + bitsLength > this.#bits.length) this.#bits = doubled(this.#bits);
    id.copy(this.#ids, number * ID_SIZE);
    packRef.digest.copy(this.#digests, number * DIGEST_SIZE);
    this.#slotCounts[number] = packRef.slotCount;
    this.#blobBytes[number] = packRef.blobBytes;
    this.#bitsAt[number] = this.#bitsUsed;
    this.#bitsUsed += bitsLength;
    if (this.#count * 2 > this.#table.length) this.#growTable();
    else this.#insert(number);
    return number;
  }

  /** @param number from `enter`. @param slot the first of `count` slots, all of which the pack has. */
  mark(number: number, slot: number, count: number): void {
    const at = this.#bitsAt[number]!;
    const end = slot + count;
    let next = slot;
    for (; next < end && (next & 7) !== 0; next++) this.#bits[at + (next >> 3)]! |= 1 << (next & 7);
    for (; next + 8 <= end; next += 8) this.#bits[at + (next >> 3)] = 0xff;
    for (; next < end; next++) this.#bits[at + (next >> 3)]! |= 1 << (next & 7);
  }

  /** @param number from `enter`. */
  isMarked(number: number, slot: number): boolean {
    return (this.#bits[this.#bitsAt[number]! + (slot >> 3)]! & (1 << (slot & 7))) !== 0;
  }

  /** @param number from `enter`. */
  slotCount(number: number): number {
    return this.#slotCounts[number]!;
  }

  /** True for a pack of which any slot is marked. */
  has(pack: string): boolean {
    const number = this.#find(uuidBytes(pack));
    return number !== undefined && this.#bitsOf(number).some((byte) => byte !== 0);
  }

  get(pack: string): MarkedPack | undefined {
    const number = this.#find(uuidBytes(pack));
    return number === undefined ? undefined : this.#entry(number);
  }

  /** Every pack that was entered, in no order that means anything. */
  *packs(): Generator<MarkedPack, void> {
    for (let number = 0; number < this.#count; number++) yield this.#entry(number);
  }

  #entry(number: number): MarkedPack {
    const slotCount = this.#slotCounts[number]!;
    const blobBytes = this.#blobBytes[number]!;
    const bits = this.#bitsOf(number);
    const liveSlots = countBits(bits);
    const packRef = {
      pack: uuidText(this.#ids.subarray(number * ID_SIZE, (number + 1) * ID_SIZE)),
      digest: Buffer.from(this.#digests.subarray(number * DIGEST_SIZE, (number + 1) * DIGEST_SIZE)),
      slotCount,
      blobBytes,
    };
    return { packRef, bits, liveSlots, liveBytes: Math.round((blobBytes * liveSlots) / slotCount) };
  }

  #bitsOf(number: number): Uint8Array {
    const at = this.#bitsAt[number]!;
    return this.#bits.subarray(at, at + Math.ceil(this.#slotCounts[number]! / 8));
  }

  #checkSame(number: number, packRef: PackRef): void {
    const at = number * DIGEST_SIZE;
    const same =
      this.#slotCounts[number] === packRef.slotCount &&
      this.#blobBytes[number] === packRef.blobBytes &&
      packRef.digest.equals(this.#digests.subarray(at, at + DIGEST_SIZE));
    if (same) return;
    const message = `Two layers do not agree on pack ${packRef.pack}; run blockhaul verify`;
    throw new AppError("corrupt", "E_PACK_CONFLICT", message, { pack: packRef.pack });
  }

  #find(id: Buffer): number | undefined {
    for (let at = this.#hash(id); ; at = (at + 1) & (this.#table.length - 1)) {
      const entry = this.#table[at]!;
      if (entry === 0) return undefined;
      const from = (entry - 1) * ID_SIZE;
      if (id.compare(this.#ids, from, from + ID_SIZE) === 0) return entry - 1;
    }
  }

  #insert(number: number): void {
    const id = this.#ids.subarray(number * ID_SIZE, (number + 1) * ID_SIZE);
    let at = this.#hash(id);
    while (this.#table[at] !== 0) at = (at + 1) & (this.#table.length - 1);
    this.#table[at] = number + 1;
  }

  /** All bytes take part: names may come from a program whose UUIDs differ in their last bytes only. */
  #hash(id: Buffer): number {
    const high = Math.imul(id.readUInt32LE(0) ^ id.readUInt32LE(4), 0x9e3779b1);
    const low = Math.imul(id.readUInt32LE(8) ^ id.readUInt32BE(12), 0x85ebca6b);
    const mixed = high ^ low;
    return (mixed ^ (mixed >>> 15)) & (this.#table.length - 1);
  }

  #growColumns(): void {
    this.#ids = Buffer.concat([this.#ids, Buffer.alloc(this.#ids.length)]);
    this.#digests = Buffer.concat([this.#digests, Buffer.alloc(this.#digests.length)]);
    const slotCounts = new Uint32Array(this.#slotCounts.length * 2);
    slotCounts.set(this.#slotCounts);
    this.#slotCounts = slotCounts;
    this.#blobBytes = doubledFloats(this.#blobBytes);
    this.#bitsAt = doubledFloats(this.#bitsAt);
  }

  #growTable(): void {
    this.#table = new Uint32Array(this.#table.length * 2);
    for (let number = 0; number < this.#count; number++) this.#insert(number);
  }
}

function doubled(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const grown = new Uint8Array(bytes.length * 2);
  grown.set(bytes);
  return grown;
}

function doubledFloats(floats: Float64Array): Float64Array<ArrayBuffer> {
  const grown = new Float64Array(floats.length * 2);
  grown.set(floats);
  return grown;
}

function countBits(bits: Uint8Array): number {
  let count = 0;
  for (let byte of bits) for (; byte !== 0; byte &= byte - 1) count++;
  return count;
}
