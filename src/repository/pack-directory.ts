import { hash } from "node:crypto";
import { Codec } from "../chunk/codec.ts";
import { AppError } from "../errors.ts";
import { sealedLength } from "./sealing.ts";

/**
 * The directory of a pack (FORMAT.md, "Pack"): a record for each slot, in the order of the blobs. Little-endian.
 *
 *     0 32 B chunk id   32 u32 stored length   36 u32 raw length   40 u8 codec   41 u32 CRC-32 of the stored bytes
 */
export const SLOT_SIZE = 45;
const STORED_LENGTH_AT = 32;
const RAW_LENGTH_AT = 36;
const CODEC_AT = 40;
const CRC32_AT = 41;

export const CHUNK_ID_SIZE = 32;

/** Most slots in a pack. */
export const SLOTS_MAX = 65_536;

/** What a directory says about a blob. Lengths in bytes. */
export interface Slot {
  /** Chunk id, 32 B. */
  readonly id: Uint8Array;
  readonly storedLength: number;
  readonly rawLength: number;
  readonly codec: Codec;
  /** CRC-32 of the stored bytes. */
  readonly crc32: number;
}

/** Names a pack for good: which one, what its directory must be, and how to find that in one request. */
export interface PackRef {
  readonly pack: string;
  /** SHA-256 of the stored directory. */
  readonly digest: Buffer;
  readonly slotCount: number;
  /** Sum of the blobs' stored lengths. */
  readonly blobBytes: number;
}

/** Where a directory comes from: for its checks and its errors. */
export interface DirectorySource {
  readonly pack: string;
  /** SHA-256 of the stored directory. */
  readonly digest: Buffer;
  /** Where the first blob begins in the object, bytes. */
  readonly firstOffset: number;
  readonly blobBytes: number;
  readonly sealed: boolean;
  /** The repository's; no chunk is longer. */
  readonly chunkSize: number;
}

/**
 * The directory of a pack on top of its bytes: 49 bytes of memory a slot, no object a slot. Every number was
 * checked; slots are counted from 0, and asking for one past the end is a bug.
 */
export class PackDirectory {
  readonly pack: string;
  /** SHA-256 of the stored directory. */
  readonly digest: Buffer;
  readonly slotCount: number;
  /** Sum of the blobs' stored lengths. */
  readonly blobBytes: number;
  readonly #bytes: Buffer;
  readonly #offsets: Uint32Array;

  /**
   * @param bytes the opened directory, a whole number of slots; kept, not copied.
   * @throws AppError E_PACK_DIRECTORY (corrupt): lengths that no writer makes, or that do not add up.
   */
  constructor(bytes: Buffer, source: DirectorySource) {
    this.pack = source.pack;
    this.digest = source.digest;
    this.blobBytes = source.blobBytes;
    this.#bytes = bytes;
    this.slotCount = bytes.length / SLOT_SIZE;
    if (!Number.isInteger(this.slotCount)) throw directoryError(source.pack, "it ends inside a slot");
    if (this.slotCount < 1 || this.slotCount > SLOTS_MAX) {
      throw directoryError(source.pack, `${this.slotCount} slots cannot be`);
    }
    this.#offsets = new Uint32Array(this.slotCount);
    let offset = source.firstOffset;
    const end = offset + source.blobBytes;
    for (let slot = 0; slot < this.slotCount; slot++) {
      this.#offsets[slot] = offset;
      offset += this.#checkedLength(slot, source);
      if (offset > end) break; // before it outgrows 32 bits
    }
    if (offset !== end) throw directoryError(source.pack, "its lengths do not add up");
  }

  get ref(): PackRef {
    return { pack: this.pack, digest: this.digest, slotCount: this.slotCount, blobBytes: this.blobBytes };
  }

  /** Memory held, in bytes; for caches. */
  get memoryBytes(): number {
    return this.#bytes.length + this.#offsets.byteLength;
  }

  /** The chunk id, 32 B: a view on the directory. */
  idAt(slot: number): Buffer {
    const at = this.#at(slot);
    return this.#bytes.subarray(at, at + CHUNK_ID_SIZE);
  }

  /** Where the blob begins in the pack's object, bytes. */
  offsetOf(slot: number): number {
    this.#at(slot);
    return this.#offsets[slot]!;
  }

  storedLength(slot: number): number {
    return this.#bytes.readUInt32LE(this.#at(slot) + STORED_LENGTH_AT);
  }

  rawLength(slot: number): number {
    return this.#bytes.readUInt32LE(this.#at(slot) + RAW_LENGTH_AT);
  }

  codec(slot: number): Codec {
    return this.#bytes[this.#at(slot) + CODEC_AT] as Codec;
  }

  crc32(slot: number): number {
    return this.#bytes.readUInt32LE(this.#at(slot) + CRC32_AT);
  }

  /** True when the slot holds the very blob, byte for byte, that a slot of another directory holds. */
  sameBlob(slot: number, other: PackDirectory, at: number): boolean {
    const [mine, its] = [this.#at(slot), other.#at(at)];
    return this.#bytes.compare(other.#bytes, its, its + SLOT_SIZE, mine, mine + SLOT_SIZE) === 0;
  }

  /** True when the opened directory is exactly these bytes. */
  equals(bytes: Uint8Array): boolean {
    return this.#bytes.equals(bytes);
  }

  #at(slot: number): number {
    if (Number.isInteger(slot) && slot >= 0 && slot < this.slotCount) return slot * SLOT_SIZE;
    throw new AppError("bug", "E_SLOT", `The pack ${this.pack} has no slot ${slot}`, {
      slots: this.slotCount,
    });
  }

  #checkedLength(slot: number, source: DirectorySource): number {
    const stored = this.storedLength(slot);
    const why = slotConflict(stored, this.rawLength(slot), this.codec(slot), source);
    if (why !== undefined) throw directoryError(this.pack, `slot ${slot}: ${why}`);
    return stored;
  }
}

/** Why there can be no such slot; undefined for a good one. */
export function slotConflict(
  storedLength: number,
  rawLength: number,
  codec: number,
  limits: Pick<DirectorySource, "sealed" | "chunkSize">,
): string | undefined {
  if (rawLength < 1 || rawLength > limits.chunkSize) return `a chunk of ${rawLength} bytes cannot be`;
  const asRaw = sealedLength(limits.sealed, rawLength);
  switch (codec) {
    case Codec.RAW:
      return storedLength === asRaw ? undefined : "raw and stored lengths differ";
    case Codec.ZSTD: // kept only where it saves something
      return storedLength > asRaw - rawLength && storedLength < asRaw
        ? undefined
        : "it is not shorter than raw";
    default:
      return `codec ${codec} is not known`;
  }
}

/** Builds a directory slot by slot. */
export class DirectoryBuilder {
  #bytes = Buffer.allocUnsafe(64 * SLOT_SIZE);
  #slotCount = 0;

  get slotCount(): number {
    return this.#slotCount;
  }

  /** @returns the new slot's number. */
  add(slot: Slot): number {
    const at = this.#slotCount * SLOT_SIZE;
    if (at === this.#bytes.length) this.#bytes = Buffer.concat([this.#bytes], this.#bytes.length * 2);
    this.#bytes.set(slot.id, at);
    this.#bytes.writeUInt32LE(slot.storedLength, at + STORED_LENGTH_AT);
    this.#bytes.writeUInt32LE(slot.rawLength, at + RAW_LENGTH_AT);
    this.#bytes.writeUInt8(slot.codec, at + CODEC_AT);
    this.#bytes.writeUInt32LE(slot.crc32, at + CRC32_AT);
    return this.#slotCount++;
  }

  /** The directory's bytes so far: a view, valid until the next `add`. */
  bytes(): Buffer {
    return this.#bytes.subarray(0, this.#slotCount * SLOT_SIZE);
  }
}

/** SHA-256 of a stored directory, by which layers name it. */
export function directoryDigest(stored: Uint8Array): Buffer {
  return hash("sha256", stored, "buffer");
}

export function directoryError(pack: string, why: string): AppError {
  return new AppError("corrupt", "E_PACK_DIRECTORY", `The directory of pack ${pack} is damaged: ${why}`, {
    pack,
  });
}
