import { ChunkType, ReplyFlag } from "../constants.ts";
import {
  encodeBlockStatus,
  encodeChunkHeader,
  encodeDataPrefix,
  encodeErrorChunk,
  encodeExtendedBlockStatus,
  encodeExtendedChunkHeader,
  encodeHole,
  encodeSimpleReply,
  type BlockStatus,
} from "../messages.ts";
import type { Failure } from "./errno.ts";
import type { ReplyStyle } from "./handshake.ts";

/** A piece of what READ found; without bytes it reads as zeros. */
export interface ReadPart {
  readonly offset: number;
  readonly length: number;
  /** One after the other. */
  readonly bytes?: readonly Uint8Array[];
}

/** What a request came to. */
export type Answer =
  | { readonly type: "done" }
  | ({ readonly type: "failure" } & Failure)
  /** Pieces that cover the request; one piece with bytes for a simple reply. To be released when they are sent. */
  | { readonly type: "data"; readonly parts: readonly ReadPart[]; release(): void }
  /** One for each selected context. */
  | { readonly type: "status"; readonly statuses: readonly BlockStatus[] };

/** Where an answer goes. */
export interface Recipient {
  readonly cookie: bigint;
  /** The request's u64 offset as it came: an extended reply repeats it, however senseless it was. */
  readonly rawOffset: Uint8Array;
}

/** The whole reply as pieces to be sent one after the other; payload is not copied. No I/O. */
export function encodeReply(style: ReplyStyle, to: Recipient, answer: Answer): Uint8Array[] {
  if (style !== "simple") return encodeChunks(style, to, chunksOf(style, answer));
  const error = answer.type === "failure" ? answer.errno : 0;
  const header = encodeSimpleReply({ error, cookie: to.cookie });
  if (answer.type !== "data") return [header];
  return [header, ...answer.parts.flatMap(({ bytes = [] }) => bytes)];
}

interface Chunk {
  readonly type: number;
  readonly payload: readonly Uint8Array[];
}

function chunksOf(style: "structured" | "extended", answer: Answer): Chunk[] {
  switch (answer.type) {
    case "done":
      return [{ type: ChunkType.NONE, payload: [] }];
    case "failure": {
      const payload = encodeErrorChunk({ error: answer.errno, message: answer.message });
      return [{ type: ChunkType.ERROR, payload: [payload] }];
    }
    case "data":
      if (answer.parts.length === 0) return [{ type: ChunkType.NONE, payload: [] }]; // a read of 0 bytes
      return answer.parts.map(({ offset, length, bytes }) =>
        bytes === undefined
          ? { type: ChunkType.OFFSET_HOLE, payload: [encodeHole({ offset, length })] }
          : { type: ChunkType.OFFSET_DATA, payload: [encodeDataPrefix(offset), ...bytes] },
      );
    case "status":
      return answer.statuses.map((status) =>
        style === "extended"
          ? { type: ChunkType.BLOCK_STATUS_EXT, payload: [encodeExtendedBlockStatus(status)] }
          : { type: ChunkType.BLOCK_STATUS, payload: [encodeBlockStatus(status)] },
      );
  }
}

function encodeChunks(
  style: "structured" | "extended",
  to: Recipient,
  chunks: readonly Chunk[],
): Uint8Array[] {
  return chunks.flatMap(({ type, payload }, index) => {
    const flags = index === chunks.length - 1 ? ReplyFlag.DONE : 0;
    const length = payload.reduce((sum, part) => sum + part.length, 0);
    const header = { flags, type, cookie: to.cookie, length };
    if (style === "structured") return [encodeChunkHeader(header), ...payload];
    const bytes = encodeExtendedChunkHeader({ ...header, offset: 0 });
    bytes.set(to.rawOffset, EXTENDED_OFFSET_AT);
    return [bytes, ...payload];
  });
}

/** Where an extended chunk's header has the request's offset. */
const EXTENDED_OFFSET_AT = 16;
