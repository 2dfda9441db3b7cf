import type { DiskMap, MapRun } from "../repository/layer-stack.ts";
import type { PackDirectories } from "../repository/pack-reader.ts";
import type { PackDirectory, PackRef } from "../repository/pack-directory.ts";
import type { ForcedChunks } from "./forced.ts";

/** A chunk of the parent generation: zero, or its id (a view that stays valid). */
export type ParentChunk = "zero" | Buffer;

/**
 * The parent's chunks in the order of the disk, for a rescan: ids come from the packs' directories, which are
 * fetched once each as the cursor moves, so that no index is needed. Calls go forward only.
 */
export class ParentChunks {
  readonly #runs: AsyncIterator<MapRun>;
  readonly #forced: ForcedChunks;
  readonly #directories: PackDirectories;
  #current: MapRun | undefined;

  /**
   * @param chunks chunks of the disk now; beyond the parent's own end the map says zero.
   * @param forced not looked at: the packs they live in may be damaged, or gone.
   */
  constructor(
    map: DiskMap,
    chunks: number,
    forced: ForcedChunks,
    directories: PackDirectories,
    signal: AbortSignal,
  ) {
    this.#runs = map.runs(0, chunks, signal)[Symbol.asyncIterator]();
    this.#forced = forced;
    this.#directories = directories;
  }

  /** @returns one for each chunk; undefined for a forced one. */
  async chunks(first: number, count: number, signal: AbortSignal): Promise<(ParentChunk | undefined)[]> {
    const found: (ParentChunk | undefined)[] = [];
    for await (const { first: start, count: length, where } of this.#slice(first, count)) {
      let directory: PackDirectory | undefined;
      for (let index = 0; index < length; index++) {
        if (this.#forced.has(start + index)) {
          found.push(undefined);
        } else if (where === "zero") {
          found.push("zero");
        } else {
          directory ??= await this.#directory(where.packRef, where.slot - start, start, length, signal);
          found.push(directory.idAt(where.slot + index));
        }
      }
    }
    return found;
  }

  async *zeroRuns(
    first: number,
    count: number,
    signal: AbortSignal,
  ): AsyncGenerator<{ first: number; count: number; zero: boolean }, void> {
    for await (const run of this.#slice(first, count)) {
      signal.throwIfAborted();
      yield { first: run.first, count: run.count, zero: run.where === "zero" };
    }
  }

  /**
   * Of the pack, or out of a forward when that is gone and every chunk that is asked about lies elsewhere: what is lost
   * must not be called unchanged.
   *
   * @param shift slot less chunk.
   */
  async #directory(
    packRef: PackRef,
    shift: number,
    first: number,
    count: number,
    signal: AbortSignal,
  ): Promise<PackDirectory> {
    const directory = await this.#directories.get(packRef, signal);
    if (this.#directories.isGone(packRef.pack)) {
      const chunks = Array.from({ length: count }, (_, index) => first + index);
      const asked = chunks.filter((chunk) => !this.#forced.has(chunk));
      await this.#directories.places(
        packRef,
        asked.map((chunk) => chunk + shift),
        signal,
      );
    }
    return directory;
  }

  /** The runs of the map clipped to the range; the map covers it without gaps. */
  async *#slice(first: number, count: number): AsyncGenerator<MapRun, void> {
    let at = first;
    while (at < first + count) {
      while (this.#current === undefined || this.#current.first + this.#current.count <= at) {
        const next = await this.#runs.next();
        if (next.done === true) return;
        this.#current = next.value;
      }
      const { first: start, count: length, where } = this.#current;
      const end = Math.min(start + length, first + count);
      const skipped = at - start;
      yield {
        first: at,
        count: end - at,
        where: where === "zero" ? where : { packRef: where.packRef, slot: where.slot + skipped },
      };
      at = end;
    }
  }
}
