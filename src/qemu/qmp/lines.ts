import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { AppError, messageOf, systemCode, type ErrorCode } from "../../errors.ts";

/** How long a peer may take to close after us, in milliseconds. */
const LINGER_MS = 1000;

const NEWLINE = 0x0a;

/** Who is at the other end, for errors. */
export interface LinePeer {
  /** In the middle of a sentence: "QEMU's monitor". */
  readonly title: string;
  readonly path: string;
  /** The code of a connection that is over. */
  readonly gone: ErrorCode;
  /** The code of bytes that cannot be right. */
  readonly protocol: ErrorCode;
  /** Bytes; a longer line ends the connection. */
  readonly lineMax: number;
}

export interface LineHandlers {
  /** A line without its end. What this throws ends the connection. */
  line(bytes: Buffer): void;
  /** Called once, with the reason that everyone gets. */
  gone(reason: unknown): void;
}

/** A Unix socket that carries one message a line, both ways. Dead is final: the first reason stays. */
export class LineConnection {
  readonly #socket: Socket;
  readonly #peer: LinePeer;
  #handlers: LineHandlers | undefined;
  /** The beginning of a line whose end has not come. */
  #pieces: Buffer[] = [];
  #size = 0;
  #failure: { readonly reason: unknown } | undefined;

  private constructor(socket: Socket, peer: LinePeer) {
    this.#socket = socket;
    this.#peer = peer;
    socket.on("error", (error) => this.destroy(this.#goneError(`broke: ${error.message}`, error)));
    socket.on("end", () => this.destroy(this.#goneError("was closed by the other side")));
  }

  /** @throws the system's error (see `whyNotConnected`); the signal's reason. */
  static async open(peer: LinePeer, signal: AbortSignal): Promise<LineConnection> {
    signal.throwIfAborted();
    const socket = connect(peer.path);
    try {
      await once(socket, "connect", { signal });
      return new LineConnection(socket, peer);
    } catch (error) {
      socket.on("error", () => undefined).destroy();
      signal.throwIfAborted();
      throw error;
    }
  }

  /** Why it is over, once it is. */
  get failure(): { readonly reason: unknown } | undefined {
    return this.#failure;
  }

  /** Nothing is read before. */
  start(handlers: LineHandlers): void {
    this.#handlers = handlers;
    if (this.#failure !== undefined) handlers.gone(this.#failure.reason);
    else this.#socket.on("data", (bytes: Buffer) => this.#take(bytes));
  }

  /** Without effect on a connection that is over. */
  send(bytes: Uint8Array | string): void {
    if (this.#failure === undefined) this.#socket.write(bytes);
  }

  /** Sends what is queued, then closes; waits for the other side to do the same, but not long. Safe to call twice. */
  async close(): Promise<void> {
    if (this.#failure !== undefined) return;
    this.#fail(this.#goneError("was closed"));
    const closed = once(this.#socket, "close", { signal: AbortSignal.timeout(LINGER_MS) });
    this.#socket.end();
    await closed.catch(() => undefined);
    this.#socket.destroy();
  }

  /** Ends it at once. */
  destroy(reason: unknown): void {
    this.#fail(reason);
    this.#socket.destroy();
  }

  /** The error of bytes that cannot be right. @param did "sent …". */
  protocolError(did: string): AppError {
    const { title, path, protocol } = this.#peer;
    return new AppError("source", protocol, `What should be ${title} at ${path} ${did}`, { path });
  }

  #fail(reason: unknown): void {
    if (this.#failure !== undefined) return;
    this.#failure = { reason };
    this.#pieces = [];
    this.#handlers?.gone(reason);
  }

  #take(bytes: Buffer): void {
    let rest = bytes;
    while (this.#failure === undefined && rest.length > 0) {
      const end = rest.indexOf(NEWLINE);
      const piece = end < 0 ? rest : rest.subarray(0, end);
      this.#size += piece.length;
      if (this.#size > this.#peer.lineMax) {
        this.destroy(this.protocolError(`sent a line of more than ${this.#peer.lineMax} bytes`));
        return;
      }
      this.#pieces.push(piece);
      if (end < 0) return;
      rest = rest.subarray(end + 1);
      this.#emit();
    }
  }

  #emit(): void {
    const line = this.#pieces.length === 1 ? this.#pieces[0]! : Buffer.concat(this.#pieces);
    this.#pieces = [];
    this.#size = 0;
    try {
      this.#handlers!.line(line);
    } catch (error) {
      this.destroy(error);
    }
  }

  #goneError(what: string, cause?: unknown): AppError {
    const { title, path, gone } = this.#peer;
    return new AppError("source", gone, `The connection to ${title} at ${path} ${what}`, { path }, cause);
  }
}

/** What a failed `open` means to a person. */
export function whyNotConnected(error: unknown): string {
  const reasons: Readonly<Record<string, string>> = {
    ENOENT: "there is no such socket",
    ECONNREFUSED: "nobody listens there",
    ENOTSOCK: "it is not a socket",
    EACCES: "no permission; run as root or as QEMU's user",
  };
  return reasons[systemCode(error) ?? ""] ?? messageOf(error);
}
