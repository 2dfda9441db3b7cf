/** Chunks from `from` to `to` - 1. */
export interface ChunkSpan {
  readonly from: number;
  readonly to: number;
}

interface Stream {
  /** The chunk after the last one that was read. */
  next: number;
  /** The chunk after the last one that was asked for ahead; at least `next`. */
  ahead: number;
  /** Chunks to be ahead of the reader; 0 until it has gone on once. */
  window: number;
}

/** Readers of one disk that are told apart: nbdcopy alone reads in four places at once. */
const STREAMS_MAX = 32;
/** A reader's requests overtake each other by so many chunks. */
const DISORDER = 16;

/**
 * Finds out who reads a disk front to back, and what they will read next. Ranges ahead grow while a reader goes on, up
 * to a bound; reads here and there get none.
 */
export class Readahead {
  readonly #chunks: number;
  readonly #start: number;
  readonly #most: number;
  /** In order of use, the latest last. */
  readonly #streams: Stream[] = [];

  /**
   * @param chunks of the disk.
   * @param start,most chunks ahead of a reader, when it is first found to go on and at most; 0 <= start <= most.
   */
  constructor(chunks: number, start: number, most: number) {
    this.#chunks = chunks;
    this.#start = start;
    this.#most = most;
  }

  /** Takes note of a read. @returns what should be fetched ahead now, if anything. */
  note({ from, to }: ChunkSpan): ChunkSpan | undefined {
    const stream = this.#streamAt(from);
    if (stream === undefined) {
      this.#streams.push({ next: to, ahead: to, window: 0 });
      if (this.#streams.length > STREAMS_MAX) this.#streams.shift();
      return undefined;
    }
    if (to <= stream.next) return undefined; // within a chunk, or overtaken by another request
    stream.next = to;
    stream.window = Math.min(this.#most, stream.window === 0 ? this.#start : stream.window * 2);
    // in few large steps: neighbours in a pack come with one request
    if (stream.ahead - stream.next > stream.window / 2) return undefined;
    const span = {
      from: Math.max(stream.ahead, stream.next),
      to: Math.min(stream.next + stream.window, this.#chunks),
    };
    stream.ahead = Math.max(span.from, span.to);
    return span.from < span.to ? span : undefined;
  }

  /** The reader that this read goes on, moved to the end of the list. */
  #streamAt(chunk: number): Stream | undefined {
    const index = this.#streams.findLastIndex(
      ({ next, ahead, window }) =>
        chunk >= next - (window === 0 ? 1 : DISORDER) && chunk <= (window === 0 ? next : ahead),
    );
    if (index < 0) return undefined;
    const [stream] = this.#streams.splice(index, 1);
    this.#streams.push(stream!);
    return stream;
  }
}
