import type { Slab } from "../chunk/slabs.ts";
import { AppError } from "../errors.ts";
import type { ReadTools } from "../repository/read-tools.ts";
import { fetchSpan, type FetchedBlob } from "../restore/fetch-span.ts";
import { openFetched } from "../restore/open-span.ts";
import type { Span } from "../restore/spans.ts";
import type { CachedBlob, DiskCache } from "./disk-cache.ts";

/** Opens spans of packs out of a cache on a local disk, or out of the repository. */
export class SpanSource {
  readonly #tools: ReadTools;
  readonly #disk: DiskCache | undefined;
  readonly #keepingMax: number;
  #keeping = 0;

  /** @param keepingMax spans that may wait to be written to the disk; others do not go there, so as not to hold up readers. */
  constructor(tools: ReadTools, disk: DiskCache | undefined, keepingMax: number) {
    this.#tools = tools;
    this.#disk = disk;
    this.#keepingMax = keepingMax;
  }

  /**
   * Brings a span's stored bytes to `from` and its chunks to `to`, checked down to their ids wherever they come from.
   *
   * @param into for each blob, where its chunk goes.
   * @returns where the stored blobs are in `from`, to be kept; undefined when they came from the disk.
   * @throws as `openSpan`; what the disk has never is the reason.
   */
  async open(
    span: Span,
    from: Slab,
    to: Pick<Slab, "bytes">,
    into: readonly number[],
    signal: AbortSignal,
  ): Promise<readonly FetchedBlob[] | undefined> {
    const disk = this.#disk;
    const kept = disk && (await readKept(disk, span, from.bytes));
    if (disk !== undefined && kept !== undefined) {
      try {
        await openFetched(span, kept, from, to, into, this.#tools);
        return undefined;
      } catch (error) {
        if (!(error instanceof AppError) || error.kind !== "corrupt") throw error;
        await disk.drop(cachedBlob(span, Number(error.context["slot"])));
      }
    }
    const fetched = await fetchSpan(span, from.bytes, this.#tools, signal);
    await openFetched(span, fetched, from, to, into, this.#tools);
    return fetched;
  }

  /** Lets the disk keep what `open` fetched. Never rejects; `from` is in use until it resolves. */
  async keep(span: Span, from: Slab, fetched: readonly FetchedBlob[] | undefined): Promise<void> {
    const disk = this.#disk;
    if (disk === undefined || fetched === undefined || this.#keeping === this.#keepingMax) return;
    this.#keeping++;
    const keeping = span.blobs.map(({ slot }, index) => {
      const { offset } = fetched[index]!;
      const bytes = from.bytes.subarray(offset, offset + span.directory.storedLength(slot));
      return disk.keep(cachedBlob(span, slot), bytes);
    });
    await Promise.all(keeping);
    this.#keeping--;
  }
}

/** All of a span's blobs, back to back; undefined when one is missing: they come with one request. */
async function readKept(disk: DiskCache, span: Span, into: Buffer): Promise<FetchedBlob[] | undefined> {
  let next = 0;
  const reads = span.blobs.map(async ({ slot }) => {
    const offset = next;
    next += span.directory.storedLength(slot);
    const found = await disk.read(cachedBlob(span, slot), into.subarray(offset, next));
    return found ? { pack: span.pack, slot, offset } : undefined;
  });
  const blobs = (await Promise.all(reads)).filter((blob) => blob !== undefined);
  return blobs.length === span.blobs.length ? blobs : undefined;
}

function cachedBlob({ directory }: Span, slot: number): CachedBlob {
  return { id: directory.idAt(slot), crc32: directory.crc32(slot) };
}
