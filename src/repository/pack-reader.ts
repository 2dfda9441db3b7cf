import { AppError, hasCode } from "../errors.ts";
import { PackSize, type Repository } from "./config.ts";
import { packKey } from "./names.ts";
import {
  PACK_END_SIZE,
  PACK_HEADER_SIZE,
  type PackFrame,
  checkPackTrailer,
  decodePackEnd,
  packLength,
  tailLength,
} from "./pack.ts";
import { PackDirectory, type PackRef, SLOTS_MAX, directoryDigest, directoryError } from "./pack-directory.ts";
import { SharedCalls } from "./shared-calls.ts";

export type { PackDirectory, PackRef } from "./pack-directory.ts";

/** Read first when nothing is known of a pack: holds the directory of about 1,400 slots. */
const TAIL_GUESS = 64 * 1024;

/**
 * Directories of packs, fetched with one request each, checked, and kept up to a bound; the least recently used
 * go first. Calls for the same pack at the same time share the request.
 */
export class PackDirectories {
  readonly #repository: Repository;
  readonly #cacheBytes: number;
  readonly #cached = new Map<string, PackDirectory>(); // in order of use
  readonly #loads = new SharedCalls<PackDirectory>();
  #bytes = 0;

  /** @param options.cacheBytes most memory that directories nobody uses right now may hold. */
  constructor(repository: Repository, options: { readonly cacheBytes: number }) {
    this.#repository = repository;
    this.#cacheBytes = options.cacheBytes;
  }

  /**
   * The directory that `ref` names.
   *
   * @throws AppError E_PACK_MISSING, E_PACK_SIZE, E_PACK_TRAILER, E_PACK_DIRECTORY, E_SEAL (corrupt): the pack
   *   is not, or no longer, the one that was written.
   */
  async get(ref: PackRef, signal: AbortSignal): Promise<PackDirectory> {
    checkRef(ref);
    const cached = this.#use(ref.pack);
    if (cached !== undefined) return matched(cached, ref);
    const key = `${ref.pack} ${ref.digest.toString("hex")} ${ref.slotCount} ${ref.blobBytes}`;
    return this.#loads.join(key, signal, async (shared) => {
      const { sealed } = this.#framing;
      const wanted = tailLength(ref.slotCount, ref.blobBytes, sealed);
      const tail = await this.#tail(ref.pack, wanted, shared);
      if (tail.size !== packLength(ref.slotCount, ref.blobBytes, sealed)) throw sizeError(ref, tail.size);
      const frame = frameOf(ref.pack, tail);
      if (!frame.digest.equals(ref.digest)) throw strangerError(ref.pack);
      return this.#keep(matched(this.#decode(ref.pack, tail.bytes, frame), ref));
    });
  }

  /**
   * The directory of a pack of which only the name is known, its digest taken from the pack itself. To be used
   * where a false directory does no harm, or is refuted later.
   *
   * @throws as `get`.
   */
  async load(pack: string, signal: AbortSignal): Promise<PackDirectory> {
    const cached = this.#use(pack);
    if (cached !== undefined) return cached;
    return this.#loads.join(pack, signal, async (shared) => {
      let tail = await this.#tail(pack, TAIL_GUESS, shared);
      const frame = frameOf(pack, tail);
      const wanted = frame.objectSize - frame.directoryOffset;
      if (wanted > tail.bytes.length) tail = await this.#tail(pack, wanted, shared);
      if (tail.size !== frame.objectSize) throw directoryError(pack, "its object changes");
      return this.#keep(this.#decode(pack, tail.bytes, frame));
    });
  }

  get #framing(): { sealed: boolean; chunkSize: number } {
    return { sealed: this.#repository.sealer.encrypted, chunkSize: this.#repository.config.chunkSize };
  }

  async #tail(pack: string, length: number, signal: AbortSignal): Promise<{ bytes: Buffer; size: number }> {
    try {
      return await this.#repository.store.getTail(packKey(pack), length, signal);
    } catch (error) {
      if (!hasCode(error, "E_NO_OBJECT")) throw error;
      throw new AppError("corrupt", "E_PACK_MISSING", `The pack ${pack} is gone`, { pack }, error);
    }
  }

  #decode(pack: string, tail: Buffer, frame: PackFrame): PackDirectory {
    const { sealed, chunkSize } = this.#framing;
    if (frame.sealed !== sealed)
      throw directoryError(pack, "sealed or not, it is not as the repository says");
    const own = tail.subarray(tail.length - (frame.objectSize - frame.directoryOffset));
    checkPackTrailer(own.subarray(frame.directoryLength), frame, pack);
    const stored = own.subarray(0, frame.directoryLength);
    if (!directoryDigest(stored).equals(frame.digest))
      throw directoryError(pack, "its digest does not match");
    const plain = this.#repository.sealer.openObject("directory", packKey(pack), stored);
    return new PackDirectory(plain, {
      pack,
      digest: frame.digest,
      firstOffset: PACK_HEADER_SIZE,
      blobBytes: frame.directoryOffset - PACK_HEADER_SIZE,
      sealed,
      chunkSize,
    });
  }

  #use(pack: string): PackDirectory | undefined {
    const directory = this.#cached.get(pack);
    if (directory === undefined) return undefined;
    this.#cached.delete(pack);
    this.#cached.set(pack, directory);
    return directory;
  }

  #keep(directory: PackDirectory): PackDirectory {
    if (this.#cached.has(directory.pack)) return directory; // `get` and `load` of one pack may cross
    this.#cached.set(directory.pack, directory);
    this.#bytes += directory.memoryBytes;
    for (const [pack, oldest] of this.#cached) {
      if (this.#bytes <= this.#cacheBytes) break;
      this.#cached.delete(pack);
      this.#bytes -= oldest.memoryBytes;
    }
    return directory;
  }
}

function frameOf(pack: string, tail: { bytes: Buffer; size: number }): PackFrame {
  return decodePackEnd(tail.bytes.subarray(-PACK_END_SIZE), tail.size, pack);
}

/** Refs come out of layers: what they announce is fetched, so it is bounded first. */
function checkRef(ref: PackRef): void {
  const { pack, slotCount, blobBytes } = ref;
  if (slotCount >= 1 && slotCount <= SLOTS_MAX && blobBytes >= 1 && blobBytes <= PackSize.max) return;
  throw directoryError(pack, `${slotCount} slots and ${blobBytes} bytes of blobs cannot be`);
}

function matched(directory: PackDirectory, ref: PackRef): PackDirectory {
  if (!directory.digest.equals(ref.digest)) throw strangerError(ref.pack);
  if (directory.slotCount !== ref.slotCount || directory.blobBytes !== ref.blobBytes) {
    throw directoryError(ref.pack, "the layer counts its slots or bytes otherwise");
  }
  return directory;
}

function strangerError(pack: string): AppError {
  return directoryError(pack, "it is not the one that the layer names");
}

function sizeError(ref: PackRef, size: number): AppError {
  const message = `The pack ${ref.pack} is ${size} bytes long, which is not what was written`;
  return new AppError("corrupt", "E_PACK_SIZE", message, { pack: ref.pack, size });
}
