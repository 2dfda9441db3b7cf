import { Readable } from "node:stream";
import { NodeHttpHandler } from "@smithy/node-http-handler";
import { KiB } from "../bytes/size.ts";
import type { RateLimit } from "../flow/rate-limit.ts";

/** So small that many requests at once each move on often enough for a server that cuts off who stands still (AWS: 20 s). */
const SLICE = 64 * KiB;

type Request = Parameters<NodeHttpHandler["handle"]>[0];
type Options = Parameters<NodeHttpHandler["handle"]>[1];

/** Sends bodies no faster than a limit. It stands behind the signature, which is made over the whole body. */
export class PacedHandler extends NodeHttpHandler {
  readonly #limit: RateLimit;

  constructor(options: ConstructorParameters<typeof NodeHttpHandler>[0], limit: RateLimit) {
    super(options);
    this.#limit = limit;
  }

  override async handle(request: Request, options?: Options): ReturnType<NodeHttpHandler["handle"]> {
    const signal = options?.abortSignal instanceof AbortSignal ? options.abortSignal : NEVER;
    const body: unknown = request.body;
    const pieces = body instanceof Uint8Array ? slices(body) : body instanceof Readable ? body : undefined;
    if (pieces !== undefined) {
      request.body = Readable.from(paced(pieces, this.#limit, signal), { objectMode: false });
    }
    return await super.handle(request, options);
  }
}

const NEVER = new AbortController().signal;

function* slices(bytes: Uint8Array): Generator<Buffer> {
  const whole = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let start = 0; start < whole.length; start += SLICE) yield whole.subarray(start, start + SLICE);
}

/** An abort ends it without a word: the handler ends the request itself, and nobody listens to the body. */
async function* paced(
  pieces: AsyncIterable<unknown> | Iterable<Buffer>,
  limit: RateLimit,
  signal: AbortSignal,
): AsyncGenerator<Buffer> {
  for await (const piece of pieces) {
    for (const slice of slices(piece as Buffer)) {
      try {
        await limit.take(slice.length, signal);
      } catch {
        return;
      }
      yield slice;
    }
  }
}
