// The entry of a worker thread: one request at a time, in order, each answered by one reply.
import { parentPort, workerData } from "node:worker_threads";
import { AppError, messageOf } from "../errors.ts";
import { chunkId, isZero, openBlob, SEAL_OVERHEAD, sealInto } from "./codec.ts";
import { reusingCompressor } from "./compressor.ts";
import { reusingDecompressor } from "./decompressor.ts";
import {
  type Failure,
  ID_BYTES,
  type Piece,
  READY,
  type Reply,
  type Request,
  type Results,
  type SealedPiece,
  type TaskName,
  type Tasks,
  type WorkerSetup,
} from "./worker-messages.ts";

const { chunkSize, keys } = workerData as WorkerSetup;
const port = parentPort!;
const compress = reusingCompressor(chunkSize);
const decompress = reusingDecompressor(chunkSize);

function identify({ slab, pieces }: Tasks["identify"]): Results["identify"] {
  const ids = new Uint8Array(pieces.length * ID_BYTES);
  pieces.forEach((piece, index) => {
    const bytes = cut(slab, piece);
    if (!isZero(bytes)) ids.set(chunkId(bytes, keys), index * ID_BYTES);
  });
  return ids;
}

/**
 * From the last piece to the first: a sealed blob may be longer than its chunk, so blob i starts i overheads after
 * its piece, where it can only cover pieces that are done.
 */
function seal({ slab, pieces, ids }: Tasks["seal"]): Results["seal"] {
  const shift = keys === undefined ? 0 : SEAL_OVERHEAD;
  const sealed: SealedPiece[] = [];
  for (let index = pieces.length - 1; index >= 0; index--) {
    const piece = pieces[index]!;
    const offset = piece.offset + index * shift;
    const into = cut(slab, { offset, length: piece.length + shift });
    sealed.push({ offset, ...sealInto(into, cut(slab, piece), idAt(ids, index), keys, compress) });
  }
  return sealed.reverse();
}

function open({ from, blobs, ids, to }: Tasks["open"]): undefined {
  blobs.forEach((blob, index) => {
    const into = cut(to, { offset: blob.into, length: blob.rawLength });
    try {
      into.set(openBlob(cut(from, blob), { ...blob, id: idAt(ids, index) }, keys, decompress));
    } catch (error) {
      if (!(error instanceof AppError)) throw error;
      throw new AppError(
        error.kind,
        error.code,
        error.message,
        { ...error.context, blob: index },
        error.cause,
      );
    }
  });
}

const TASKS: { readonly [Name in TaskName]: (task: Tasks[Name]) => Results[Name] } = { identify, seal, open };

function run<Name extends TaskName>({ name, task }: Request<Name>): Results[Name] {
  return TASKS[name](task);
}

function idAt(ids: Uint8Array, index: number): Uint8Array {
  return ids.subarray(index * ID_BYTES, (index + 1) * ID_BYTES);
}

function cut(slab: SharedArrayBuffer, { offset, length }: Piece): Uint8Array {
  const room = slab.byteLength - offset;
  if (!(offset >= 0 && length > 0 && length <= chunkSize + SEAL_OVERHEAD && length <= room)) {
    const context = { offset, length, slab: slab.byteLength, chunkSize };
    throw new AppError(
      "bug",
      "E_SLAB_BOUNDS",
      "A chunk is too long or does not lie inside its slab",
      context,
    );
  }
  return new Uint8Array(slab, offset, length);
}

function failureOf(error: unknown): Failure {
  if (error instanceof AppError) {
    const { kind, code, message, context, cause } = error;
    return { kind, code, message, context, cause };
  }
  const message = `A chunk worker failed: ${messageOf(error)}`;
  return { kind: "bug", code: "E_CHUNK_WORKER", message, context: {}, cause: error };
}

function send(reply: Reply, transfer: readonly ArrayBuffer[] = []): void {
  port.postMessage(reply, transfer);
}

port.on("message", (request: Request) => {
  const { cookie } = request;
  try {
    const result = run(request);
    send({ cookie, result }, result instanceof Uint8Array ? [result.buffer] : []);
  } catch (error) {
    send({ cookie, failure: failureOf(error) });
  }
});
send({ cookie: READY, result: undefined });
