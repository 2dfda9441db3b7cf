import type { Socket } from "node:net";
import { AppError } from "../../errors.ts";

/** Received bytes wait here for the reader up to this many; then the client has to wait. */
const BUFFERED_MAX = 256 * 1024;

/**
 * One client's socket as a stream of exact reads and whole messages. One reader at a time; any number of senders.
 *
 * Once it failed it stays failed: every read, now and later, ends with the first reason.
 */
export class Peer {
  readonly socket: Socket;
  readonly #chunks: Buffer[] = [];
  #buffered = 0;
  #ended = false;
  #failure: Error | undefined;
  #wake: (() => void) | undefined;

  /** Takes over the socket's reading side. */
  constructor(socket: Socket) {
    this.socket = socket;
    socket
      .on("data", this.#onData)
      .on("end", this.#onEnd)
      .on("close", this.#onEnd)
      .on("error", this.#onError);
  }

  readonly #onData = (chunk: Buffer): void => {
    this.#chunks.push(chunk);
    this.#buffered += chunk.length;
    if (this.#buffered >= BUFFERED_MAX) this.socket.pause();
    this.#wake?.();
  };

  /** What was received before can still be read: a client may send its last requests and leave. */
  readonly #onEnd = (): void => {
    this.#ended = true;
    this.#wake?.();
  };

  readonly #onError = (error: Error): void => this.fail(error);

  /** Received and not yet read, in bytes. */
  get buffered(): number {
    return this.#buffered + this.socket.readableLength;
  }

  /** Ends every read, now and later. What was received before can no longer be read. */
  fail(reason: Error): void {
    this.#failure ??= reason;
    this.#wake?.();
  }

  /** The next `size` bytes, a view that stays valid. @param size a small bound of the protocol, not a peer's word. */
  async read(size: number): Promise<Buffer> {
    const first = this.#chunks[0];
    if (first !== undefined && first.length >= size && this.#failure === undefined) {
      this.#advance(size);
      return first.subarray(0, size);
    }
    const bytes = Buffer.allocUnsafe(size);
    await this.readInto(bytes);
    return bytes;
  }

  /** Fills `into`: the one copy between the socket and where the bytes are needed. */
  async readInto(into: Uint8Array): Promise<void> {
    for (let at = 0; at < into.length;) {
      const chunk = await this.#available();
      const taken = chunk.subarray(0, into.length - at);
      into.set(taken, at);
      at += taken.length;
      this.#advance(taken.length);
    }
  }

  /** Reads `size` bytes away, however many, without keeping them. */
  async skip(size: number): Promise<void> {
    for (let left = size; left > 0;) {
      const taken = Math.min(left, (await this.#available()).length);
      left -= taken;
      this.#advance(taken);
    }
  }

  /**
   * Sends the parts as one message: nothing else gets between them.
   *
   * @returns resolves when the operating system has the bytes; the parts must not change before. Rejects when
   *   the connection is gone.
   */
  async send(...parts: readonly Uint8Array[]): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.socket.cork();
      parts.forEach((part, index) => {
        if (index < parts.length - 1) this.socket.write(part);
        else this.socket.write(part, (error) => (error == null ? resolve() : reject(error)));
      });
      this.socket.uncork();
    });
  }

  /** Gives the socket back, unread and paused, for TLS to take over. */
  release(): Socket {
    this.socket.pause();
    this.socket.off("data", this.#onData).off("end", this.#onEnd).off("close", this.#onEnd);
    this.socket.off("error", this.#onError);
    return this.socket;
  }

  async #available(): Promise<Buffer> {
    for (;;) {
      if (this.#failure !== undefined) throw this.#failure;
      if (this.#chunks.length > 0) return this.#chunks[0]!;
      if (this.#ended) throw clientLeft();
      this.socket.resume();
      await new Promise<void>((resolve) => (this.#wake = resolve));
      this.#wake = undefined;
    }
  }

  #advance(size: number): void {
    const first = this.#chunks[0]!;
    this.#buffered -= size;
    if (size === first.length) this.#chunks.shift();
    else this.#chunks[0] = first.subarray(size);
    if (this.#buffered < BUFFERED_MAX && this.socket.isPaused()) this.socket.resume();
  }
}

/** Why things end when the client goes away. */
export function clientLeft(): AppError {
  return new AppError("cancelled", "E_NBD_CLIENT_LEFT", "The NBD client closed the connection");
}
