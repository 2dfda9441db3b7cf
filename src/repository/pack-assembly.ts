import { crc32 } from "node:zlib";
import { AppError } from "../errors.ts";
import type { Repository } from "./config.ts";
import { crc32Combine } from "./crc32-combine.ts";
import { newUuid, packKey } from "./names.ts";
import {
  CHECKSUM_SPAN,
  PACK_END_SIZE,
  PACK_HEADER_SIZE,
  checkPackTrailer,
  decodePackEnd,
  encodePackTrailer,
  packLength,
} from "./pack.ts";
import {
  CHUNK_ID_SIZE,
  DirectoryBuilder,
  PackDirectory,
  SLOTS_MAX,
  type Slot,
  directoryDigest,
  slotConflict,
} from "./pack-directory.ts";

/** A pack whose upload the store has acknowledged: from now on its slots may be named (R11). */
export interface CompletedPack {
  readonly pack: string;
  readonly directory: PackDirectory;
  /** The directory as stored, sealed when the repository is. */
  readonly storedDirectory: Buffer;
  readonly objectSize: number;
}

/**
 * The books of one pack while it is written: slots, sizes and checksums. The bytes themselves go elsewhere.
 */
export class PackAssembly {
  /** A fresh name, never used again, not even when this pack fails. */
  readonly pack = newUuid();
  readonly #repository: Repository;
  readonly #slots = new DirectoryBuilder();
  readonly #checksums: number[] = [];
  #blobBytes = 0;
  #length = 0; // of the object so far
  #checksum = 0; // of the span begun last

  constructor(repository: Repository) {
    this.#repository = repository;
  }

  /** Whether the finished object would keep to the repository's pack size with one more blob. */
  hasRoom(blobLength: number): boolean {
    const { config, sealer } = this.#repository;
    const slots = this.#slots.slotCount + 1;
    return (
      slots <= SLOTS_MAX &&
      packLength(slots, this.#blobBytes + blobLength, sealer.encrypted) <= config.packSize
    );
  }

  /** Enters a blob. @returns its slot. @throws AppError E_PACK_BROKEN (bug) for a slot that cannot be. */
  add(slot: Slot): number {
    const { config, sealer } = this.#repository;
    const limits = { sealed: sealer.encrypted, chunkSize: config.chunkSize };
    const why = slotConflict(slot.storedLength, slot.rawLength, slot.codec, limits);
    if (why !== undefined || slot.id.length !== CHUNK_ID_SIZE)
      throw this.#broken(why ?? "a chunk id of 32 bytes");
    this.#blobBytes += slot.storedLength;
    return this.#slots.add(slot);
  }

  /**
   * Takes note of the object's next bytes, in the buffer from which they are sent.
   * @returns their CRC-32.
   */
  written(bytes: Uint8Array): number {
    let whole = 0;
    for (let at = 0; at < bytes.length;) {
      const left = CHECKSUM_SPAN - (this.#length % CHECKSUM_SPAN);
      const piece = bytes.subarray(at, at + left);
      const checksum = crc32(piece);
      whole = crc32Combine(whole, checksum, piece.length);
      this.#checksum = crc32Combine(this.#checksum, checksum, piece.length);
      this.#length += piece.length;
      at += piece.length;
      if (piece.length === left) this.#endSpan();
    }
    return whole;
  }

  /** The directory to write after the last blob; read back before it leaves memory. */
  directory(): { readonly stored: Buffer; readonly directory: PackDirectory } {
    const { config, sealer } = this.#repository;
    const key = packKey(this.pack);
    const plain = this.#slots.bytes();
    const stored = Buffer.from(sealer.sealObject("directory", key, plain));
    const directory = new PackDirectory(sealer.openObject("directory", key, stored), {
      pack: this.pack,
      digest: directoryDigest(stored),
      firstOffset: PACK_HEADER_SIZE,
      blobBytes: this.#blobBytes,
      sealed: sealer.encrypted,
      chunkSize: config.chunkSize,
    });
    if (!directory.equals(plain) || this.#length !== PACK_HEADER_SIZE + this.#blobBytes) {
      throw this.#broken("its directory does not read back as it was written");
    }
    return { stored, directory };
  }

  /** The trailer, to write after the directory; read back too. */
  trailer(directory: PackDirectory, directoryLength: number): Buffer {
    if (this.#length % CHECKSUM_SPAN !== 0) this.#endSpan();
    const fields = {
      sealed: this.#repository.sealer.encrypted,
      slotCount: directory.slotCount,
      directoryOffset: PACK_HEADER_SIZE + directory.blobBytes,
      directoryLength,
      digest: directory.digest,
    };
    const trailer = encodePackTrailer(fields, this.#checksums);
    const size = this.#length + trailer.length;
    const frame = decodePackEnd(trailer.subarray(-PACK_END_SIZE), size, this.pack);
    const checksums = checkPackTrailer(trailer, frame, this.pack);
    if (!frame.digest.equals(directory.digest) || checksums.length !== this.#checksums.length) {
      throw this.#broken("its trailer does not read back as it was written");
    }
    return trailer;
  }

  #endSpan(): void {
    this.#checksums.push(this.#checksum);
    this.#checksum = 0;
  }

  #broken(why: string): AppError {
    return new AppError("bug", "E_PACK_BROKEN", `The pack ${this.pack} was not finished: ${why}`, {
      pack: this.pack,
    });
  }
}
