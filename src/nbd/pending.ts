import { AppError, type ErrorCode } from "../errors.ts";
import { Command, Errno, nameOf } from "./constants.ts";
import { Coverage } from "./coverage.ts";
import type { BlockStatus, ErrorChunk } from "./messages.ts";
import { protocolError } from "./wire.ts";

/** One request that was sent, and what has come of its reply so far. */
export class Pending {
  readonly command: number;
  readonly offset: number;
  readonly length: number;
  /** Where a read's data goes; as long as `length`. */
  readonly into: Uint8Array | undefined;
  /** The data of a read that has come. */
  readonly coverage = new Coverage();
  /** By context id. */
  readonly statuses = new Map<number, BlockStatus>();
  /** The first one the server reported. */
  error: ErrorChunk | undefined;
  errorChunks = 0;
  /** Nobody waits any more: what still comes is checked and thrown away. */
  abandoned = false;

  constructor(command: number, offset: number, length: number, into?: Uint8Array) {
    this.command = command;
    this.offset = offset;
    this.length = length;
    this.into = into;
  }

  /** @throws AppError E_NBD_PROTOCOL unless the range lies within the request. */
  expectInside(offset: number, length: number): void {
    if (offset >= this.offset && offset + length <= this.offset + this.length) return;
    const asked = `${this.length} bytes at ${this.offset}`;
    throw protocolError(`NBD server answered with ${length} bytes at ${offset} when asked for ${asked}`);
  }

  /** @throws AppError E_NBD_PROTOCOL when the server calls it done without having told everything. */
  expectComplete(contexts: number): void {
    if (this.error !== undefined) return;
    if (this.command === Command.READ && !this.coverage.isWhole(this.offset, this.offset + this.length)) {
      throw protocolError(`NBD server left out a part of ${this.length} bytes at ${this.offset}`);
    }
    if (this.command === Command.BLOCK_STATUS && this.statuses.size !== contexts) {
      throw protocolError(
        `NBD server told ${this.statuses.size} of ${contexts} block states at ${this.offset}`,
      );
    }
  }
}

const FAILURES: Readonly<Record<number, { code: ErrorCode; verb: string }>> = {
  [Command.READ]: { code: "E_NBD_READ", verb: "read" },
  [Command.WRITE]: { code: "E_NBD_WRITE", verb: "write" },
  [Command.WRITE_ZEROES]: { code: "E_NBD_ZERO", verb: "zero" },
  [Command.TRIM]: { code: "E_NBD_TRIM", verb: "trim" },
  [Command.FLUSH]: { code: "E_NBD_FLUSH", verb: "flush" },
  [Command.BLOCK_STATUS]: { code: "E_NBD_STATUS", verb: "ask for the state of" },
};

/** What the server's error reply means to whoever made the request. The connection goes on. */
export function replyError(uri: string, request: Pending, error: ErrorChunk): AppError {
  const { code, verb } = FAILURES[request.command]!;
  const range = request.command === Command.FLUSH ? "" : ` ${request.length} bytes at ${request.offset} of`;
  const errno = nameOf(Errno, error.error);
  const where = error.offset === undefined ? "" : ` at ${error.offset}`;
  const said = error.message === "" ? "" : ` (${error.message})`;
  return new AppError("source", code, `Cannot ${verb}${range} ${uri}: ${errno}${where}${said}`, {
    uri,
    errno,
    offset: request.offset,
    length: request.length,
    ...(error.offset === undefined ? {} : { errorOffset: error.offset }),
  });
}
