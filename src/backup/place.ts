import { AppError } from "../errors.ts";
import type { DedupIndex } from "../repository/dedup.ts";
import type { LayerWriter } from "../repository/layer-writer.ts";
import type { PackWriter } from "../repository/pack-writer.ts";
import type { DiskCounts } from "./counts.ts";
import { idKey, type RunChunks, type Verdict } from "./decide.ts";
import type { FetchedData } from "../chunk/fetch.ts";
import type { Sealed } from "./seal.ts";

/** The last stage of a disk: blobs go into packs, addresses into the layer. Batches come in the order of the disk. */
export class Placer {
  readonly #packs: PackWriter;
  readonly #layer: LayerWriter;
  readonly #dedup: DedupIndex;
  readonly #mine: RunChunks;
  readonly #recordZeros: boolean;
  readonly #counts: DiskCounts;

  /** @param recordZeros false for a full: what no layer mentions is zero anyway. */
  constructor(
    packs: PackWriter,
    layer: LayerWriter,
    dedup: DedupIndex,
    mine: RunChunks,
    recordZeros: boolean,
    counts: DiskCounts,
  ) {
    this.#packs = packs;
    this.#layer = layer;
    this.#dedup = dedup;
    this.#mine = mine;
    this.#recordZeros = recordZeros;
    this.#counts = counts;
  }

  async place(batch: Sealed): Promise<void> {
    if (!("verdicts" in batch)) {
      for (const run of batch.zeros) {
        this.#counts.zeroRun(run);
        if (!run.unchanged) this.#zero(run.first, run.count);
      }
      return;
    }
    const { fetched, verdicts } = batch;
    try {
      let blob = 0;
      for (const [index, verdict] of verdicts.entries()) {
        const chunk = fetched.batch.first + index;
        const rawLength = fetched.pieces[index]!.length;
        const sealed = verdict.is === "new" ? batch.blobs[blob++]! : undefined;
        this.#counts.chunk(verdict.is, rawLength, sealed?.length ?? 0);
        await this.#placeChunk(chunk, verdict, fetched, rawLength, sealed);
      }
    } finally {
      fetched.slab.release();
    }
  }

  async #placeChunk(
    chunk: number,
    verdict: Verdict,
    fetched: FetchedData,
    rawLength: number,
    sealed: Sealed["blobs"][number] | undefined,
  ): Promise<void> {
    switch (verdict.is) {
      case "unchanged":
        return;
      case "zero":
        this.#zero(chunk, 1);
        return;
      case "known":
        this.#layer.add(chunk, 1, verdict);
        return;
      case "twin":
        if (verdict.of.address === undefined) {
          throw new AppError("bug", "E_NO_TWIN", "A repeated chunk has no first copy");
        }
        this.#layer.add(chunk, 1, verdict.of.address);
        return;
      case "new": {
        if (sealed === undefined) throw new AppError("bug", "E_NO_BLOB", `Chunk ${chunk} was not sealed`);
        const bytes = fetched.slab.bytes.subarray(sealed.offset, sealed.offset + sealed.length);
        const entry = { id: verdict.id, rawLength, codec: sealed.codec, crc32: sealed.crc32 };
        const address = await this.#packs.append(bytes, entry);
        verdict.address = address;
        this.#mine.open.add(address.pack);
        this.#dedup.remember(verdict.id, address.pack, address.slot);
        this.#mine.inFlight.delete(idKey(verdict.id));
        this.#layer.add(chunk, 1, address);
      }
    }
  }

  #zero(first: number, count: number): void {
    if (this.#recordZeros) this.#layer.add(first, count, "zero");
  }
}
