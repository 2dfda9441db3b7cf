import { chunkCount } from "../chunk/grid.ts";
import { SlabPool } from "../chunk/slabs.ts";
import { AppError } from "../errors.ts";
import { drain, mapOrdered } from "../flow/map-ordered.ts";
import { DiskMap } from "../repository/layer-stack.ts";
import type { ManifestDisk } from "../repository/manifest.ts";
import type { PackDirectories } from "../repository/pack-reader.ts";
import type { ReadTools } from "../repository/read-tools.ts";
import { openSpan, type OpenedSpan } from "./open-span.ts";
import { windows, type Window } from "./plan.ts";
import { GETS, SPAN_LIMITS, spans, type Span } from "./spans.ts";

/** What receives a disk's content. Calls come in the packs' order, several at once, each byte of the disk once. */
export interface ContentSink {
  data(span: OpenedSpan, signal: AbortSignal): Promise<void>;
  zero(offset: number, length: number, signal: AbortSignal): Promise<void>;
}

/** For who does not want all of a disk. */
export interface Selection {
  /** Bytes of the disk that are planned at once, a multiple of every chunk size. */
  readonly windowBytes: number;
  /** Told window after window, front to back, while what was chosen before may still be on its way to the sink. */
  choose(window: Window, signal: AbortSignal): Promise<Window>;
}

/**
 * map ─▶ windows ─▶ (selection) ─▶ spans of packs ─▶ ranged GET, open ─▶ sink
 *
 * Everything of one disk of a generation, or what is chosen of it, verified against the chain of hashes, pack by pack
 * with bounded memory.
 */
export async function readDisk(
  disk: ManifestDisk,
  tools: ReadTools,
  sink: ContentSink,
  run: AbortController,
  selection?: Selection,
): Promise<void> {
  const { repository, directories } = tools;
  const { chunkSize, size } = disk;
  const slabs = {
    stored: new SlabPool(SPAN_LIMITS.storedMax, GETS),
    raw: new SlabPool(SPAN_LIMITS.rawMax, GETS + 2),
  };
  const map = await DiskMap.open(repository, disk, run.signal);
  const chunks = chunkCount(size, chunkSize);
  const planned = windows(map, size, chunkSize, chunks, run.signal, selection?.windowBytes);
  const chosen = selection === undefined ? planned : chosenOf(planned, selection, run.signal);
  const wanted = spansOf(chosen, directories, run.signal);
  const done = mapOrdered(wanted, GETS, run, async (item, signal) => {
    if (!("pack" in item)) return sink.zero(item.offset, item.length, signal);
    assertChunkLengths(item, size, chunkSize);
    const opened = await openSpan(item, tools, slabs, signal);
    try {
      await sink.data(opened, signal);
    } finally {
      opened.slab.release();
    }
  });
  await drain(done);
}

async function* chosenOf(
  planned: AsyncIterable<Window>,
  selection: Selection,
  signal: AbortSignal,
): AsyncGenerator<Window, void> {
  for await (const window of planned) yield await selection.choose(window, signal);
}

async function* spansOf(
  planned: AsyncIterable<Window>,
  directories: PackDirectories,
  signal: AbortSignal,
): AsyncGenerator<Span | { offset: number; length: number }, void> {
  for await (const window of planned) {
    for (const part of window.packs) {
      yield* spans(part, await directories.get(part.packRef, signal), SPAN_LIMITS);
    }
    yield* window.zeros;
  }
}

/** A blob must be exactly as long as every chunk it stands for; only the disk's last chunk may be short. */
function assertChunkLengths(span: Span, size: number, chunkSize: number): void {
  for (const { slot, chunks } of span.blobs) {
    const rawLength = span.directory.rawLength(slot);
    for (const chunk of chunks) {
      if (rawLength === Math.min(chunkSize, size - chunk * chunkSize)) continue;
      throw new AppError(
        "corrupt",
        "E_CHUNK_LENGTH",
        `Slot ${slot} of pack ${span.pack} does not fit chunk ${chunk}`,
        {
          rawLength,
        },
      );
    }
  }
}
