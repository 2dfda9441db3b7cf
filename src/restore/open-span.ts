import type { Slab, SlabPool } from "../chunk/slabs.ts";
import type { ChunkWorkers } from "../chunk/workers.ts";
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
      const fetched = await fetchSpan(span, from.bytes, tools, signal);
      const blobs = place(span, fetched);
      await tools.workers.open(from, blobs, to).catch((error: unknown) => {
        throw named(error, fetched);
      });
      return {
        slab: to,
        storedBytes: span.length,
        blobs: span.blobs.map((blob, index) => ({
          ...blob,
          at: blobs[index]!.into,
          length: blobs[index]!.rawLength,
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

/** What each blob of a span is: where it was fetched to, and the raw bytes go back to back. */
function place(
  { directory, blobs }: Span,
  fetched: readonly FetchedBlob[],
): Parameters<ChunkWorkers["open"]>[1][number][] {
  let into = 0;
  return blobs.map(({ slot }, index) => {
    const rawLength = directory.rawLength(slot);
    into += rawLength;
    return {
      offset: fetched[index]!.offset,
      length: directory.storedLength(slot),
      codec: directory.codec(slot),
      crc32: directory.crc32(slot),
      rawLength,
      id: directory.idAt(slot),
      into: into - rawLength,
    };
  });
}

function named(error: unknown, fetched: readonly FetchedBlob[]): unknown {
  if (!(error instanceof AppError) || error.kind !== "corrupt") return error;
  const { pack, slot } = fetched[Number(error.context["blob"] ?? 0)]!;
  const message = `Pack ${pack} is damaged at slot ${slot}: ${error.message}`;
  return new AppError("corrupt", error.code, message, { ...error.context, pack, slot }, error);
}
