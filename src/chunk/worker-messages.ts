import type { ErrorCode, ErrorContext, ErrorKind } from "../errors.ts";
import type { BlobFacts, Codec } from "./codec.ts";
import type { ChunkKeys } from "./keys.ts";

/** What a worker is started with. */
export interface WorkerSetup {
  /** Bytes; no piece is longer. */
  readonly chunkSize: number;
  readonly keys: ChunkKeys | undefined;
}

/** A range of a slab, in bytes. */
export interface Piece {
  readonly offset: number;
  readonly length: number;
}

export interface SealedPiece extends Piece {
  readonly codec: Codec;
  readonly crc32: number;
}

/** A stored blob, without its id, and where its chunk goes in the other slab. */
export interface PackedBlob extends Piece, Omit<BlobFacts, "id"> {
  readonly into: number;
}

/** Bytes of an id. Ids cross threads in one buffer, in the order of their pieces, and that buffer is transferred. */
export const ID_BYTES = 32;

/** What a worker does. Slabs travel as their SharedArrayBuffer: no byte of a chunk is copied between threads. */
export interface Tasks {
  readonly identify: { readonly slab: SharedArrayBuffer; readonly pieces: readonly Piece[] };
  readonly seal: {
    readonly slab: SharedArrayBuffer;
    readonly pieces: readonly Piece[];
    readonly ids: Uint8Array<ArrayBuffer>;
  };
  readonly open: {
    readonly from: SharedArrayBuffer;
    readonly blobs: readonly PackedBlob[];
    readonly ids: Uint8Array<ArrayBuffer>;
    readonly to: SharedArrayBuffer;
  };
}

export interface Results {
  /** The ids; nothing but zeros stands for a piece of nothing but zeros. */
  readonly identify: Uint8Array<ArrayBuffer>;
  readonly seal: readonly SealedPiece[];
  readonly open: undefined;
}

export type TaskName = keyof Tasks;

export interface Request<Name extends TaskName = TaskName> {
  readonly cookie: number;
  readonly name: Name;
  readonly task: Tasks[Name];
}

/** An AppError as it crosses threads: a class does not survive the structured clone. */
export interface Failure {
  readonly kind: ErrorKind;
  readonly code: ErrorCode;
  readonly message: string;
  readonly context: ErrorContext;
  readonly cause: unknown;
}

/** Cookie of a worker's first message: it has loaded. */
export const READY = 0;

export type Reply =
  | { readonly cookie: number; readonly result: unknown }
  | { readonly cookie: number; readonly failure: Failure };
