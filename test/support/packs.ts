import type { Repository } from "../../src/repository/config.ts";
import { type CompletedPack, PackWriter } from "../../src/repository/pack-writer.ts";
import { testBlob } from "./blobs.ts";

/** A stored chunk, for tests of what finds it. */
export interface TestChunk {
  readonly id: Uint8Array;
  readonly pack: string;
  readonly slot: number;
}

/** Stores a complete pack for each list of seeds; chunk `seed` has the id of `testBlob(seed, …)`. */
export async function storePacks(
  repository: Repository,
  ...packs: readonly (readonly number[])[]
): Promise<{ completed: CompletedPack[]; chunks: TestChunk[] }> {
  const completed: CompletedPack[] = [];
  const chunks: TestChunk[] = [];
  for (const seeds of packs) {
    const onPack = (pack: CompletedPack): void => void completed.push(pack);
    const writer = new PackWriter(repository, { partsInFlight: 2, onPack }, new AbortController());
    for (const seed of seeds) {
      const { blob, entry } = testBlob(seed, 100, { encrypted: repository.sealer.encrypted });
      chunks.push({ id: entry.id, ...(await writer.append(blob, entry)) });
    }
    await writer.finish();
  }
  return { completed, chunks };
}
