import type { ZstdCompress, ZstdDecompress } from "node:zlib";

/** What is used of the inside of a zstd stream; nothing of it is documented. */
interface Inside {
  readonly _handle: {
    writeSync(
      flush: number,
      input: Uint8Array,
      inputAt: number,
      inputLength: number,
      output: Uint8Array,
      outputAt: number,
      outputLength: number,
    ): void;
  } | null;
  /** After a call: room left in the output, input left. */
  readonly _writeState: Uint32Array;
}

/** A zstd context that is used for one frame after the other. */
export interface ZstdInside {
  /**
   * Hands over all of an input and its end.
   *
   * @returns the bytes at the start of `output` that came of it; undefined when it failed, now or earlier, when input is left
   *   over, or when the output is full, so that there may be more.
   */
  write(flush: number, input: Uint8Array, output: Uint8Array): number | undefined;
  /** Frees the context. */
  close(): void;
}

/**
 * The context and nothing else of a stream. Node has no public call that reuses one, so this goes through the stream's
 * handle, as npm's own minizlib does; a Node that is otherwise inside makes every `write` fail.
 */
export function reachInside(stream: ZstdCompress | ZstdDecompress): ZstdInside {
  let broken = false;
  stream.on("error", () => (broken = true)); // after the call that it is about
  const inside = stream as unknown as Inside;
  return {
    write(flush, input, output) {
      if (broken) return undefined;
      try {
        inside._writeState.fill(0); // a call that fails leaves what the one before wrote
        inside._handle!.writeSync(flush, input, 0, input.length, output, 0, output.length);
        const [roomLeft, inputLeft] = inside._writeState;
        if (inputLeft === 0 && roomLeft! > 0 && roomLeft! < output.length) return output.length - roomLeft!;
      } catch {
        // a Node of another build
      }
      broken = true;
      return undefined;
    },
    close: () => stream.destroy(),
  };
}
