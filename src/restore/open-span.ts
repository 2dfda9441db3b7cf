import type { Slab, SlabPool } from "../chunk/slabs.ts";
import { AppError } from "../errors.ts";
import type { ReadTools } from "../repository/read-tools.ts";
import { type FetchedBlob, fetchSpan } from "./fetch-span.ts";
import type { Span, WantedBlob } from "./spans.ts";

/** Raw, verified bytes of a span's blobs, in a slab that the receiver gives back. */
export interface OpenedSpan {
  readonly slab: Slab;
  /** What it took to fetch it, bytes; with what lies between its blobs. */
  readonly storedBytes: number;
  readonly blobs: readonly (WantedBlob & { readonly at: number; readonly length: number })[];
}

/**
 * Fetches a span and opens its blobs: CRC, seal, decompression and chunk id are checked before a byte is handed on,
 * against the directory that the layer names, wherever the blobs lie by now.
 *
 * @throws AppError (corrupt) that names the pack and slot that hold the damage.
 */
export async function openSpan(
  span: Span,
  tools: ReadTools,
  slabs: { readonly stored: SlabPool; readonly raw: SlabPool },
  signal: AbortSignal,
): Promise<OpenedSpan> {
  const from = await slabs.stored.take(signal);
  try {
    const to = await slabs.raw.take(signal);
    try {
      const into = backToBack(span);
      const fetched = await fetchSpan(span, from.bytes, tools, signal);
      await openFetched(span, fetched, from, to, into, tools);
      return {
        slab: to,
        storedBytes: span.length,
        blobs: span.blobs.map((blob, index) => ({
          ...blob,
          at: into[index]!,
          length: span.directory.rawLength(blob.slot),
        })),
      };
    } catch (error) {
      to.release();
      throw error;
    }
  } finally {
    from.release();
  }
}

/**
 * Opens a span's blobs that were fetched, each to where the caller wants its chunk, checked as `openSpan` says.
 *
 * @param fetched for each blob of the span, where it is in `from`. @param into where its chunk goes in `to`.
 */
export async function openFetched(
  { directory, blobs }: Span,
  fetched: readonly FetchedBlob[],
  from: Slab,
  to: Pick<Slab, "bytes">,
  into: readonly number[],
  { workers }: Pick<ReadTools, "workers">,
): Promise<void> {
  const packed = blobs.map(({ slot }, index) => ({
    offset: fetched[index]!.offset,
    length: directory.storedLength(slot),
    codec: directory.codec(slot),
    crc32: directory.crc32(slot),
    rawLength: directory.rawLength(slot),
    id: directory.idAt(slot),
    into: into[index]!,
  }));
  await workers.open(from, packed, to).catch((error: unknown) => {
    throw named(error, fetched);
  });
}

function backToBack({ directory, blobs }: Span): number[] {
  let next = 0;
  return blobs.map(({ slot }) => {
    const at = next;
    next += directory.rawLength(slot);
    return at;
  });
}

function named(error: unknown, fetched: readonly FetchedBlob[]): unknown {
  if (!(error instanceof AppError) || error.kind !== "corrupt") return error;
  const { pack, slot } = fetched[Number(error.context["blob"] ?? 0)]!;
  const message = `Pack ${pack} is damaged at slot ${slot}: ${error.message}`;
  return new AppError("corrupt", error.code, message, { ...error.context, pack, slot }, error);
}
