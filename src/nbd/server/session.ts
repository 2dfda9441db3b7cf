import type { Socket } from "node:net";
import { AppError } from "../../errors.ts";
import { welcome } from "./handshake.ts";
import { clientLeft, Peer } from "./peer.ts";
import type { ServedDisk } from "./served-disk.ts";
import type { ServerTls } from "./tls.ts";
import { Transmission, type TransmissionLimits } from "./transmission.ts";

/** What a session needs to know of its server. */
export interface SessionSetup {
  readonly exports: ReadonlyMap<string, ServedDisk>;
  readonly tls: ServerTls | undefined;
  readonly limits: TransmissionLimits;
  /** Time for greeting, TLS and options together, in milliseconds. */
  readonly handshakeMs: number;
  /** Time for answers under way when the server closes, and for last bytes to go out, in milliseconds. */
  readonly lingerMs: number;
  /** Why a request failed or a session was cut; the client was told as far as the protocol allows. */
  readonly onError: (error: unknown) => void;
}

/** One client, from its connection to its end. */
export class Session {
  readonly #socket: Socket;
  readonly #setup: SessionSetup;
  /** Aborted when nobody is there any more to read answers. */
  readonly #gone = new AbortController();
  /** The one to talk to now: the socket itself, or TLS on it. */
  #peer: Peer;
  #state: "handshake" | "transmission" | "ending" = "handshake";
  readonly #ended: Promise<void>;

  /** Starts serving at once. */
  constructor(socket: Socket, setup: SessionSetup) {
    this.#socket = socket;
    this.#setup = setup;
    this.#peer = new Peer(socket);
    socket.on("error", () => undefined); // also while TLS takes over; "close" follows and is what counts
    socket.once("close", () => this.#gone.abort(clientLeft()));
    this.#ended = this.#run();
  }

  /** Resolves when the socket is closed and nothing of the session is running. Never rejects. */
  get ended(): Promise<void> {
    return this.#ended;
  }

  /**
   * Ends the session: requests under way are answered, if that takes no longer than the lingering time, further
   * ones are not taken. Does not wait.
   */
  close(): void {
    if (this.#state === "handshake") this.#socket.destroy();
    else this.#peer.fail(new AppError("cancelled", "E_NBD_CLOSING", "The NBD server is closing"));
    const timer = setTimeout(() => this.#socket.destroy(), this.#setup.lingerMs);
    void this.#ended.then(() => clearTimeout(timer));
  }

  async #run(): Promise<void> {
    try {
      await this.#serve();
    } catch (error) {
      // A client may go when it likes, and a server may close: only a breach of the protocol is worth a word.
      if (error instanceof AppError && error.code === "E_NBD_PROTOCOL") this.#setup.onError(error);
    } finally {
      await this.#finish();
    }
  }

  async #serve(): Promise<void> {
    const { exports, tls, limits, handshakeMs, onError } = this.#setup;
    const late = setTimeout(() => this.#socket.destroy(), handshakeMs);
    const welcomed = await welcome(this.#peer, exports, tls).finally(() => clearTimeout(late));
    if (welcomed === undefined) return;
    this.#peer = welcomed.peer;
    this.#state = "transmission";
    await new Transmission(this.#peer, welcomed.agreement, limits, this.#gone, onError).run();
  }

  /** Lets the last answers out, then closes; a client that takes neither is cut off. */
  async #finish(): Promise<void> {
    this.#state = "ending";
    const closed = new Promise<void>((resolve) => {
      if (this.#socket.closed) resolve();
      else this.#socket.once("close", resolve);
    });
    const timer = setTimeout(() => this.#socket.destroy(), this.#setup.lingerMs);
    this.#peer.socket.destroySoon(); // TLS says goodbye and closes what is below
    await closed;
    clearTimeout(timer);
  }
}
