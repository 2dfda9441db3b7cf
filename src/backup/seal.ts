import type { ChunkWorkers, SealedPiece } from "../chunk/workers.ts";
import type { Decided } from "./decide.ts";

/** A decided batch whose new chunks lie in the slab as blobs, in the order of its `new` verdicts. */
export type Sealed = Decided & { readonly blobs: readonly SealedPiece[] };

/** Compresses and seals what is new; everything else has cost only its hash. */
export async function sealBatch(decided: Decided, workers: ChunkWorkers): Promise<Sealed> {
  if (!("verdicts" in decided)) return { ...decided, blobs: [] };
  const { pieces, slab } = decided.fetched;
  const fresh = decided.verdicts.flatMap((verdict, index) =>
    verdict.is === "new" ? [{ ...pieces[index]!, id: verdict.id }] : [],
  );
  if (fresh.length === 0) return { ...decided, blobs: [] };
  try {
    return { ...decided, blobs: await workers.seal(slab, fresh) };
  } catch (error) {
    slab.release();
    throw error;
  }
}
