import { crc32 } from "node:zlib";
import { ByteReader, ByteWriter } from "../bytes/cursor.ts";
import { MiB } from "../bytes/size.ts";
import { AppError } from "../errors.ts";
import { PackSize } from "./config.ts";
import { SLOT_SIZE, SLOTS_MAX } from "./pack-directory.ts";
import { sealedLength } from "./sealing.ts";

/**
 * The frame of a pack (FORMAT.md, "Pack"). Integers are little-endian.
 *
 *     header      0 "BLKHPACK"   8 u16 version   10 u16 flags   12 u32 zero
 *     blobs       back to back, from offset 16
 *     directory   see pack-directory.ts
 *     checksums   u32 CRC-32 of each MiB of everything before, the last piece may be short
 *     end         0 u64 directory offset    8 u32 directory length   12 u32 slot count
 *                16 32 B SHA-256 of the stored directory             48 u16 version   50 u16 flags
 *                52 u32 CRC-32 of checksums and end so far           56 "BLKHPEND"
 *
 * Checksums and end together are the trailer.
 */
const HEADER_MAGIC = "BLKHPACK";
const END_MAGIC = "BLKHPEND";
const PACK_VERSION = 1;
const FLAG_SEALED = 1;

export const PACK_HEADER_SIZE = 16;
export const PACK_END_SIZE = 64;
const END_CHECKED_SIZE = 52;

/** Each checksum in the trailer covers this many bytes. */
export const CHECKSUM_SPAN = MiB;

/** What the trailer tells, and where everything lies in the object; bytes. */
export interface PackFrame {
  readonly sealed: boolean;
  readonly slotCount: number;
  readonly directoryOffset: number;
  readonly directoryLength: number;
  /** SHA-256 of the stored directory. */
  readonly digest: Buffer;
  /** Where the trailer begins; everything before is covered by its checksums. */
  readonly trailerOffset: number;
  readonly objectSize: number;
}

/** Stored length of the directory of `slotCount` slots, in bytes. */
export function directoryLength(slotCount: number, sealed: boolean): number {
  return sealedLength(sealed, slotCount * SLOT_SIZE);
}

/** Bytes from the directory's first to the object's last: what one ranged GET must bring to read the directory. */
export function tailLength(slotCount: number, blobBytes: number, sealed: boolean): number {
  const stored = directoryLength(slotCount, sealed);
  return stored + trailerLength(PACK_HEADER_SIZE + blobBytes + stored);
}

function trailerLength(trailerOffset: number): number {
  return 4 * Math.ceil(trailerOffset / CHECKSUM_SPAN) + PACK_END_SIZE;
}

/** Size of the whole object, in bytes. */
export function packLength(slotCount: number, blobBytes: number, sealed: boolean): number {
  return PACK_HEADER_SIZE + blobBytes + tailLength(slotCount, blobBytes, sealed);
}

export function encodePackHeader(sealed: boolean): Buffer {
  return new ByteWriter(PACK_HEADER_SIZE)
    .bytes(Buffer.from(HEADER_MAGIC, "latin1"))
    .u16(PACK_VERSION)
    .u16(sealed ? FLAG_SEALED : 0)
    .u32(0)
    .finish();
}

/**
 * Checks the first `PACK_HEADER_SIZE` bytes of a pack.
 * @throws AppError E_PACK_HEADER (corrupt).
 */
export function checkPackHeader(bytes: Uint8Array, sealed: boolean, pack: string): void {
  if (encodePackHeader(sealed).equals(bytes)) return;
  throw new AppError("corrupt", "E_PACK_HEADER", `The pack ${pack} does not begin with a pack's header`, {
    pack,
  });
}

/**
 * The trailer.
 * @param checksums CRC-32 of each span of the object before the trailer.
 */
export function encodePackTrailer(
  frame: Pick<PackFrame, "sealed" | "slotCount" | "directoryOffset" | "directoryLength" | "digest">,
  checksums: readonly number[],
): Buffer {
  const writer = new ByteWriter(checksums.length * 4 + PACK_END_SIZE);
  for (const checksum of checksums) writer.u32(checksum);
  writer
    .u64(frame.directoryOffset)
    .u32(frame.directoryLength)
    .u32(frame.slotCount)
    .bytes(frame.digest)
    .u16(PACK_VERSION)
    .u16(frame.sealed ? FLAG_SEALED : 0);
  writer.u32(crc32(writer.finish())).bytes(Buffer.from(END_MAGIC, "latin1"));
  return writer.finish();
}

/**
 * The frame of a pack from its last `PACK_END_SIZE` bytes, every number in it checked against the object's size
 * and the format's limits, so that what it announces may be fetched. The trailer's own checksum is left to
 * `checkPackTrailer`.
 *
 * @throws AppError E_PACK_TRAILER (corrupt).
 */
export function decodePackEnd(end: Uint8Array, objectSize: number, pack: string): PackFrame {
  if (end.length !== PACK_END_SIZE || objectSize > PackSize.max)
    throw trailerError(pack, "its size cannot be");
  const reader = new ByteReader(end, `pack ${pack}`);
  const directoryOffset = reader.u64();
  const length = reader.u32();
  const slotCount = reader.u32();
  const digest = reader.bytes(32);
  const version = reader.u16();
  const flags = reader.u16();
  reader.u32();
  if (reader.bytes(END_MAGIC.length).toString("latin1") !== END_MAGIC)
    throw trailerError(pack, "it has no end mark");
  if (version !== PACK_VERSION) throw trailerError(pack, `its version ${version} is not known`);
  if (flags > FLAG_SEALED) throw trailerError(pack, `its flags ${flags} are not known`);
  const sealed = flags === FLAG_SEALED;
  if (slotCount < 1 || slotCount > SLOTS_MAX) throw trailerError(pack, `${slotCount} slots cannot be`);
  if (length !== directoryLength(slotCount, sealed))
    throw trailerError(pack, "directory and slot count differ");
  const blobBytes = directoryOffset - PACK_HEADER_SIZE;
  if (blobBytes < 1 || packLength(slotCount, blobBytes, sealed) !== objectSize) {
    throw trailerError(pack, `its directory's place does not fit its size of ${objectSize} bytes`);
  }
  const trailerOffset = directoryOffset + length;
  return { sealed, slotCount, directoryOffset, directoryLength: length, digest, trailerOffset, objectSize };
}

/**
 * Checks a trailer by its own checksum.
 *
 * @param trailer from `frame.trailerOffset` to the object's end.
 * @returns the CRC-32 of each span before it, for a scrub.
 * @throws AppError E_PACK_TRAILER (corrupt).
 */
export function checkPackTrailer(trailer: Uint8Array, frame: PackFrame, pack: string): Uint32Array {
  if (trailer.length !== frame.objectSize - frame.trailerOffset) throw trailerError(pack, "it is cut off");
  const checked = trailer.length - PACK_END_SIZE + END_CHECKED_SIZE;
  const reader = new ByteReader(trailer, `pack ${pack}`);
  const spans = new Uint32Array((trailer.length - PACK_END_SIZE) / 4);
  for (let span = 0; span < spans.length; span++) spans[span] = reader.u32();
  reader.bytes(END_CHECKED_SIZE);
  if (crc32(trailer.subarray(0, checked)) !== reader.u32())
    throw trailerError(pack, "its checksum does not match");
  return spans;
}

function trailerError(pack: string, why: string): AppError {
  return new AppError("corrupt", "E_PACK_TRAILER", `The trailer of pack ${pack} is damaged: ${why}`, {
    pack,
  });
}
