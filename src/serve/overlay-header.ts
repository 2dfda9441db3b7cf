import { crc32 } from "node:zlib";
import { ByteReader, ByteWriter } from "../bytes/cursor.ts";
import { KiB } from "../bytes/size.ts";
import { AppError } from "../errors.ts";
import { uuidBytes, uuidText } from "../repository/names.ts";
import { stateBytes } from "./block-states.ts";

/** What an overlay belongs to. Writes on one generation make no sense on another. */
export interface OverlayIdentity {
  readonly repository: string;
  readonly generation: string;
  readonly disk: string;
  /** Of the disk, bytes. */
  readonly size: number;
}

/** Where things are in an overlay's file (README.md, "Overlay"), in bytes. */
export interface OverlayLayout {
  readonly blockSize: number;
  readonly blocks: number;
  /** Of the states, which follow the header. */
  readonly stateBytes: number;
  /** Where block 0 begins. */
  readonly dataOffset: number;
  readonly fileSize: number;
}

export const OVERLAY_HEADER_SIZE = 4096;
const MAGIC = Buffer.from("BLKHOVLY", "latin1");
const VERSION = 1;
/** The header ends with the CRC-32 of all before it. */
const CRC_OFFSET = OVERLAY_HEADER_SIZE - 4;
const BLOCK_MIN = 64 * KiB;
/** More blocks are larger ones: their states take 16 MiB of memory at most. */
const BLOCKS_MAX = 2 ** 26;

/** The block size of a new overlay: 64 KiB up to 4 TiB, 1 MiB at 64 TiB. */
export function overlayBlockSize(diskSize: number): number {
  let blockSize = BLOCK_MIN;
  while (diskSize / blockSize > BLOCKS_MAX) blockSize *= 2;
  return blockSize;
}

export function overlayLayout(diskSize: number, blockSize: number): OverlayLayout {
  const blocks = Math.ceil(diskSize / blockSize);
  const states = stateBytes(blocks);
  const dataOffset = Math.ceil((OVERLAY_HEADER_SIZE + states) / blockSize) * blockSize;
  return { blockSize, blocks, stateBytes: states, dataOffset, fileSize: dataOffset + blocks * blockSize };
}

export function encodeOverlayHeader(identity: OverlayIdentity, blockSize: number): Buffer {
  const { repository, generation, disk, size } = identity;
  const name = Buffer.from(disk, "utf8");
  const fields = new ByteWriter()
    .bytes(MAGIC)
    .u16(VERSION)
    .u16(0)
    .u32(blockSize)
    .u64(size)
    .bytes(uuidBytes(repository))
    .bytes(uuidBytes(generation))
    .u16(name.length)
    .bytes(name)
    .finish();
  const header = Buffer.alloc(OVERLAY_HEADER_SIZE);
  fields.copy(header);
  header.writeUInt32LE(crc32(header.subarray(0, CRC_OFFSET)), CRC_OFFSET);
  return header;
}

/**
 * @param header 4096 bytes, or less when the file is shorter.
 * @throws AppError E_OVERLAY_FORMAT (usage) for a file that is no overlay, or of a newer version; E_OVERLAY (corrupt).
 */
export function decodeOverlayHeader(
  header: Uint8Array,
  path: string,
): { readonly identity: OverlayIdentity; readonly blockSize: number } {
  const reader = new ByteReader(header, `overlay ${path}`);
  if (header.length < OVERLAY_HEADER_SIZE || !reader.bytes(MAGIC.length).equals(MAGIC)) {
    const message = `${path} is not an overlay; name a file that does not exist to begin one`;
    throw new AppError("usage", "E_OVERLAY_FORMAT", message, { path });
  }
  const version = reader.u16();
  if (version !== VERSION) {
    const message = `The overlay ${path} has version ${version}, this program knows ${VERSION}; use a newer one`;
    throw new AppError("usage", "E_OVERLAY_FORMAT", message, { path, version });
  }
  const stored = new ByteReader(header.subarray(CRC_OFFSET, OVERLAY_HEADER_SIZE), `overlay ${path}`).u32();
  if (crc32(header.subarray(0, CRC_OFFSET)) !== stored)
    throw damagedOverlay(path, "its header's checksum is wrong");
  reader.u16();
  const blockSize = reader.u32();
  const size = reader.u64();
  const repository = uuidText(reader.bytes(16));
  const generation = uuidText(reader.bytes(16));
  const disk = reader.bytes(reader.u16()).toString("utf8");
  if (blockSize !== overlayBlockSize(size)) throw damagedOverlay(path, "its block size cannot be");
  return { identity: { repository, generation, disk, size }, blockSize };
}

/** @throws AppError E_OVERLAY_OTHER (usage): the overlay was begun on something else. */
export function checkIdentity(found: OverlayIdentity, wanted: OverlayIdentity, path: string): void {
  const same =
    found.repository === wanted.repository &&
    found.generation === wanted.generation &&
    found.disk === wanted.disk &&
    found.size === wanted.size;
  if (same) return;
  const message =
    `The overlay ${path} belongs to disk ${found.disk} of generation ${found.generation}, ` +
    `not to ${wanted.disk} of ${wanted.generation}; serve that one, or name another file`;
  throw new AppError("usage", "E_OVERLAY_OTHER", message, { path, repository: found.repository });
}

export function damagedOverlay(path: string, why: string): AppError {
  return new AppError("corrupt", "E_OVERLAY", `The overlay ${path} is damaged: ${why}`, { path });
}
