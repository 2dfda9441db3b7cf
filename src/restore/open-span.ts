import type { Slab, SlabPool } from "../chunk/slabs.ts";
import type { ChunkWorkers } from "../chunk/workers.ts";
import { AppError } from "../errors.ts";
import type { ObjectStore } from "../store/store.ts";
import { packKey } from "../repository/names.ts";
import type { Span, WantedBlob } from "./spans.ts";

/** Raw, verified bytes of a span's blobs, in a slab that the receiver gives back. */
export interface OpenedSpan {
  readonly slab: Slab;
  readonly blobs: readonly (WantedBlob & { readonly at: number; readonly length: number })[];
}

/**
 * Fetches a span and opens its blobs: CRC, seal, decompression and chunk id are checked before a byte is handed on.
 *
 * @throws AppError (corrupt) that names the pack and slot.
 */
export async function openSpan(
  span: Span,
  store: ObjectStore,
  slabs: { readonly stored: SlabPool; readonly raw: SlabPool },
  workers: ChunkWorkers,
  signal: AbortSignal,
): Promise<OpenedSpan> {
  const from = await slabs.stored.take(signal);
  try {
    const to = await slabs.raw.take(signal);
    try {
      await store.getRange(packKey(span.pack), span.offset, from.bytes.subarray(0, span.length), signal);
      const blobs = place(span);
      await workers.open(from, blobs, to).catch((error: unknown) => {
        throw named(error, span);
      });
      return {
        slab: to,
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

/** Where each blob lies in the fetched bytes, and where its raw bytes go: back to back. */
function place(span: Span): Parameters<ChunkWorkers["open"]>[1][number][] {
  const { directory } = span;
  let into = 0;
  return span.blobs.map(({ slot }) => {
    const rawLength = directory.rawLength(slot);
    into += rawLength;
    return {
      offset: directory.offsetOf(slot) - span.offset,
      length: directory.storedLength(slot),
      codec: directory.codec(slot),
      crc32: directory.crc32(slot),
      rawLength,
      id: directory.idAt(slot),
      into: into - rawLength,
    };
  });
}

function named(error: unknown, span: Span): unknown {
  if (!(error instanceof AppError) || error.kind !== "corrupt") return error;
  const blob = Number(error.context["blob"] ?? 0);
  const slot = span.blobs[blob]?.slot ?? 0;
  const message = `Pack ${span.pack} is damaged at slot ${slot}: ${error.message}`;
  return new AppError("corrupt", error.code, message, { ...error.context, pack: span.pack, slot }, error);
}
