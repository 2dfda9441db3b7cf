import type { ByteReader, ByteWriter } from "../bytes/cursor.ts";
import type { AppError } from "../errors.ts";
import type { Repository } from "./config.ts";
import { packKey, uuidBytes, uuidText } from "./names.ts";
import { directoryLength, PACK_HEADER_SIZE } from "./pack.ts";
import { directoryDigest, PackDirectory, type PackRef, SLOTS_MAX } from "./pack-directory.ts";

/** A pack's directory, and its bytes as stored: their digest is what layers name. */
export interface StoredDirectory {
  readonly directory: PackDirectory;
  readonly storedDirectory: Buffer;
}

/**
 * The directory of a pack from its bytes as stored, wherever they were found: in the pack itself, an index object or a
 * forward. It is the pack's own only when its digest is the one that a layer names.
 *
 * @param stored a whole number of slots once it is opened; kept, not copied, in a plain repository.
 * @param blobBytes sum of the blobs' stored lengths.
 * @throws AppError E_PACK_DIRECTORY, E_SEAL (corrupt).
 */
export function openDirectory(
  { sealer, config }: Repository,
  pack: string,
  stored: Buffer,
  blobBytes: number,
): PackDirectory {
  return new PackDirectory(sealer.openObject("directory", packKey(pack), stored), {
    pack,
    digest: directoryDigest(stored),
    firstOffset: PACK_HEADER_SIZE,
    blobBytes,
    sealed: sealer.encrypted,
    chunkSize: config.chunkSize,
  });
}

/**
 * Fetches the directory out of the pack itself.
 *
 * @returns undefined when it is not the one that `ref` names.
 * @throws AppError E_NO_OBJECT (notFound), E_OBJECT_SIZE, and those of `openDirectory` (corrupt); errors of the store.
 */
export async function fetchStoredDirectory(
  repository: Repository,
  { pack, slotCount, blobBytes, digest }: PackRef,
  signal: AbortSignal,
): Promise<StoredDirectory | undefined> {
  const storedDirectory = Buffer.alloc(directoryLength(slotCount, repository.sealer.encrypted));
  await repository.store.getRange(packKey(pack), PACK_HEADER_SIZE + blobBytes, storedDirectory, signal);
  const directory = openDirectory(repository, pack, storedDirectory, blobBytes);
  return directory.digest.equals(digest) ? { directory, storedDirectory } : undefined;
}

/** Writes a directory as index objects and forwards hold it: pack 16 B, u32 slots, u64 bytes of blobs, as stored. */
export function writeStoredDirectory(
  body: ByteWriter,
  { directory, storedDirectory }: StoredDirectory,
): ByteWriter {
  const { pack, slotCount, blobBytes } = directory;
  return body.bytes(uuidBytes(pack)).u32(slotCount).u64(blobBytes).bytes(storedDirectory);
}

/**
 * Reads what `writeStoredDirectory` wrote.
 * @throws AppError `damaged`, E_TRUNCATED, and those of `openDirectory` (corrupt).
 */
export function readStoredDirectory(
  repository: Repository,
  body: ByteReader,
  damaged: (why: string) => AppError,
): StoredDirectory {
  const pack = uuidText(body.bytes(16));
  const slotCount = body.u32();
  const blobBytes = body.u64();
  if (slotCount > SLOTS_MAX) throw damaged(`a pack of ${slotCount} slots cannot be`);
  const storedDirectory = body.bytes(directoryLength(slotCount, repository.sealer.encrypted));
  return { directory: openDirectory(repository, pack, storedDirectory, blobBytes), storedDirectory };
}
