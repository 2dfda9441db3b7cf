import { MiB } from "../../bytes/size.ts";
import { AppError } from "../../errors.ts";
import type { Repository } from "../../repository/config.ts";
import { PackDirectories } from "../../repository/pack-reader.ts";
import type { PackMarks } from "./pack-marks.ts";
import { slotsWithout } from "./slot-bits.ts";

/** Directories of new packs: those of one prune lie together. */
const CACHE_BYTES = 16 * MiB;

/**
 * R2: which of these packs nobody would miss, since every live slot of theirs lies somewhere else. Looked up just as a
 * reader would once they are gone, down to the new packs' directories (R10).
 *
 * @param packs some of them nothing mentions: these go anyway.
 */
export async function reallyMoved(
  repository: Repository,
  marks: PackMarks,
  packs: readonly string[],
  warn: (message: string) => void,
  signal: AbortSignal,
): Promise<ReadonlySet<string>> {
  const directories = new PackDirectories(repository, { cacheBytes: CACHE_BYTES });
  const moved = new Set<string>();
  for (const pack of packs) {
    const marked = marks.get(pack);
    try {
      if (marked !== undefined && marks.has(pack))
        await directories.places(marked.packRef, slotsWithout(marked.bits, undefined), signal);
      moved.add(pack);
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof AppError) || error.kind !== "corrupt") throw error;
      warn(`Pack ${pack} was rewritten, but stays: ${error.message}`);
    }
  }
  return moved;
}
