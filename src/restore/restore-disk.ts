import type { DiskTarget } from "../disk/disk.ts";
import type { ManifestDisk } from "../repository/manifest.ts";
import type { OpenedSpan } from "./open-span.ts";
import type { ReadTools } from "../repository/read-tools.ts";
import { readDisk } from "./read-disk.ts";

export interface RestoreStats {
  /** Raw bytes written as data. */
  bytesWritten: number;
  /** Bytes made zero, by a write or because the target was known to be zero. */
  bytesZero: number;
  chunksWritten: number;
}

/**
 * Makes the target byte for byte what the generation's disk was. When it resolves, every byte was verified, written
 * and flushed; after a failure the target's content is undefined and the caller must not call it restored.
 */
export async function restoreDisk(
  disk: ManifestDisk,
  target: DiskTarget,
  tools: ReadTools,
  run: AbortController,
  progress: (stats: Readonly<RestoreStats>) => void,
): Promise<RestoreStats> {
  const stats: RestoreStats = { bytesWritten: 0, bytesZero: 0, chunksWritten: 0 };
  await readDisk(
    disk,
    tools,
    {
      async data(span, signal) {
        for (const piece of writesOf(span, disk.chunkSize)) {
          await target.write(piece.offset, piece.bytes, signal);
          stats.bytesWritten += piece.bytes.length;
          stats.chunksWritten += piece.chunks;
        }
        progress(stats);
      },
      async zero(offset, length, signal) {
        if (!target.zeroed) await target.zero(offset, length, signal);
        stats.bytesZero += length;
        progress(stats);
      },
    },
    run,
  );
  await target.flush(run.signal);
  return stats;
}

/** Writes for a span: chunks that are neighbours in the slab and on the disk become one. */
export function* writesOf(
  span: OpenedSpan,
  chunkSize: number,
): Generator<{ offset: number; bytes: Buffer; chunks: number }, void> {
  const copies = span.blobs
    .flatMap(({ chunks, at, length }) => chunks.map((chunk) => ({ chunk, at, length })))
    .sort((a, b) => a.chunk - b.chunk);
  let index = 0;
  while (index < copies.length) {
    const first = copies[index++]!;
    let end = first.at + first.length;
    let chunks = 1;
    while (copies[index]?.chunk === first.chunk + chunks && copies[index]!.at === end) {
      end += copies[index++]!.length;
      chunks++;
    }
    yield { offset: first.chunk * chunkSize, bytes: span.slab.bytes.subarray(first.at, end), chunks };
  }
}
