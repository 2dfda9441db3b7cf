import { AppError, hasCode } from "../errors.ts";
import { PackSize, type Repository } from "./config.ts";
import { Forwards } from "./forwards.ts";
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
import {
  type PackDirectory,
  type PackRef,
  SLOTS_MAX,
  directoryDigest,
  directoryError,
} from "./pack-directory.ts";
import { directoryOfGone, packMissing, relocate, type Place } from "./relocate.ts";
import { SharedCalls } from "./shared-calls.ts";
import { openDirectory } from "./stored-directory.ts";

export type { PackDirectory, PackRef } from "./pack-directory.ts";
export type { Place } from "./relocate.ts";

/** Read first when nothing is known of a pack: holds the directory of about 1,400 slots. */
const TAIL_GUESS = 64 * 1024;

/**
 * Directories of packs, fetched with one request each, checked, and kept up to a bound; the least recently used
 * go first. Calls for the same pack at the same time share the request.
 *
 * A pack that is gone because it was rewritten is found through its forwards. Nobody looks for these before a pack is
 * missed.
 */
export class PackDirectories {
  /** As this reader knows them. */
  readonly forwards: Forwards;
  readonly #repository: Repository;
  readonly #cacheBytes: number;
  /** Packs that were missed: their names never come back (R4). */
  readonly #gone = new Set<string>();
  readonly #cached = new Map<string, PackDirectory>(); // in order of use
  readonly #loads = new SharedCalls<PackDirectory>();
  #bytes = 0;

  /** @param options.cacheBytes most memory that directories nobody uses right now may hold. */
  constructor(repository: Repository, options: { readonly cacheBytes: number }) {
    this.#repository = repository;
    this.#cacheBytes = options.cacheBytes;
    this.forwards = new Forwards(repository);
  }

  /**
   * The directory that `ref` names: out of the pack, or when that is gone, out of a forward. It tells what the slots
   * hold; where that lies in a pack that is gone, `places` tells.
   *
   * @throws AppError E_PACK_MISSING, E_PACK_SIZE, E_PACK_TRAILER, E_PACK_DIRECTORY, E_SEAL (corrupt): the pack
   *   is not, or no longer, the one that was written.
   */
  async get(ref: PackRef, signal: AbortSignal): Promise<PackDirectory> {
    try {
      return await this.#present(ref, signal);
    } catch (error) {
      if (!hasCode(error, "E_PACK_MISSING")) throw error;
      return await directoryOfGone(ref, this.forwards, signal);
    }
  }

  /** True for a pack that was looked for and is not there. */
  isGone(pack: string): boolean {
    return this.#gone.has(pack);
  }

  /** Takes note that somebody missed the pack itself. */
  noteGone(pack: string): void {
    this.#gone.add(pack);
    this.#drop(pack);
  }

  /**
   * Where slots of a pack that is gone lie now, each in a pack that is there as far as is known.
   *
   * @throws AppError E_PACK_MISSING (corrupt): some of them are nowhere; E_FORWARD and those of `get`.
   */
  async places(ref: PackRef, slots: readonly number[], signal: AbortSignal): Promise<Map<number, Place>> {
    const present = (target: PackRef, ofCall: AbortSignal): Promise<PackDirectory> =>
      this.#present(target, ofCall);
    return await relocate(ref, slots, { forwards: this.forwards, present }, signal);
  }

  async #present(ref: PackRef, signal: AbortSignal): Promise<PackDirectory> {
    checkRef(ref);
    if (this.#gone.has(ref.pack)) throw packMissing(ref.pack);
    const cached = this.#use(ref.pack);
    if (cached !== undefined) return matched(cached, ref);
    const key = `${ref.pack} ${ref.digest.toString("hex")} ${ref.slotCount} ${ref.blobBytes}`;
    return this.#loads.join(key, signal, async (shared) => {
      const sealed = this.#repository.sealer.encrypted;
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
   * where a false directory does no harm, or is refuted later. Forwards are not asked: nothing new may be made to
   * stand on a pack that is gone.
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

  async #tail(pack: string, length: number, signal: AbortSignal): Promise<{ bytes: Buffer; size: number }> {
    try {
      return await this.#repository.store.getTail(packKey(pack), length, signal);
    } catch (error) {
      if (!hasCode(error, "E_NO_OBJECT")) throw error;
      this.noteGone(pack);
      throw packMissing(pack, error);
    }
  }

  #decode(pack: string, tail: Buffer, frame: PackFrame): PackDirectory {
    const sealed = this.#repository.sealer.encrypted;
    if (frame.sealed !== sealed)
      throw directoryError(pack, "sealed or not, it is not as the repository says");
    const own = tail.subarray(tail.length - (frame.objectSize - frame.directoryOffset));
    checkPackTrailer(own.subarray(frame.directoryLength), frame, pack);
    const stored = own.subarray(0, frame.directoryLength);
    if (!directoryDigest(stored).equals(frame.digest))
      throw directoryError(pack, "its digest does not match");
    return openDirectory(this.#repository, pack, stored, frame.directoryOffset - PACK_HEADER_SIZE);
  }

  #use(pack: string): PackDirectory | undefined {
    const directory = this.#cached.get(pack);
    if (directory === undefined) return undefined;
    this.#cached.delete(pack);
    this.#cached.set(pack, directory);
    return directory;
  }

  #drop(pack: string): void {
    this.#bytes -= this.#cached.get(pack)?.memoryBytes ?? 0;
    this.#cached.delete(pack);
  }

  #keep(directory: PackDirectory): PackDirectory {
    if (this.#cached.has(directory.pack)) return directory; // `get` and `load` of one pack may cross
    this.#cached.set(directory.pack, directory);
    this.#bytes += directory.memoryBytes;
    for (const pack of this.#cached.keys()) {
      if (this.#bytes <= this.#cacheBytes) break;
      this.#drop(pack);
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
