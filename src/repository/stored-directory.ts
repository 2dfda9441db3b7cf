import type { Repository } from "./config.ts";
import { packKey } from "./names.ts";
import { PACK_HEADER_SIZE } from "./pack.ts";
import { directoryDigest, PackDirectory } from "./pack-directory.ts";

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
