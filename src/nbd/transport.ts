import { once } from "node:events";
import { connect as connectSocket, Socket, type OnReadOpts } from "node:net";
import { connect as connectTls, type ConnectionOptions, type TLSSocket } from "node:tls";
import { AppError, messageOf, systemCode } from "../errors.ts";
import { Receiver } from "./receive.ts";
import { protocolError } from "./wire.ts";
import type { NbdAddress } from "./uri.ts";

/** The connection went away, or never came up. The only NBD error that a new connection may cure. */
export function lostError(message: string, cause?: unknown): AppError {
  return new AppError("unavailable", "E_NBD_LOST", message, {}, cause);
}

/**
 * A socket, encrypted or not, whose bytes go through a `Receiver`. Dead is final: whatever ends it first, a peer
 * that leaves, a piece that breaks the protocol, or `destroy`, is the reason that everyone gets.
 */
export class Transport {
  readonly receiver = new Receiver();
  readonly #address: NbdAddress;
  #socket: Socket;
  #failure: { readonly reason: unknown } | undefined;
  #onFailure: ((reason: unknown) => void) | undefined;
  #corked = false;

  private constructor(address: NbdAddress) {
    this.#address = address;
    const onread: OnReadOpts = {
      buffer: () => this.receiver.buffer(),
      callback: (length, buffer) => {
        this.#take(() => this.receiver.filled(length, buffer));
        return true;
      },
    };
    this.#socket = connectSocket({ ...address.socket, onread, noDelay: true, keepAlive: true });
    this.#watch(this.#socket);
  }

  /** @throws AppError E_NBD_LOST (unavailable) that says why; the signal's reason. */
  static async open(address: NbdAddress, signal: AbortSignal): Promise<Transport> {
    signal.throwIfAborted();
    const transport = new Transport(address);
    try {
      await once(transport.#socket, "connect", { signal });
      return transport;
    } catch (error) {
      transport.destroy(error);
      signal.throwIfAborted();
      throw lostError(`Cannot connect to ${address.uri}: ${explainConnect(address, error)}`, error);
    }
  }

  get failure(): { readonly reason: unknown } | undefined {
    return this.#failure;
  }

  /** Called once, at once if it is dead already. */
  set onFailure(listener: (reason: unknown) => void) {
    this.#onFailure = listener;
    if (this.#failure !== undefined) listener(this.#failure.reason);
  }

  /**
   * Encrypts from here on.
   *
   * @throws AppError E_NBD_TLS (credentials) when one side does not accept the other; the signal's reason.
   */
  async startTls(options: ConnectionOptions, signal: AbortSignal): Promise<void> {
    // What came in clear after the server's consent was put there by somebody else.
    if (this.receiver.hasEarlyBytes) throw protocolError("NBD server sent unencrypted bytes after STARTTLS");
    const plain = this.#socket;
    const secure: TLSSocket = connectTls({ ...options, socket: plain });
    try {
      await once(secure, "secureConnect", { signal });
    } catch (error) {
      signal.throwIfAborted();
      throw tlsError(this.#address.uri, error);
    }
    secure.on("data", (bytes: Uint8Array) => this.#take(() => this.receiver.push(bytes)));
    this.#socket = secure;
    this.#watch(secure);
  }

  /** Sends parts in order, together with all else that is sent in this turn. @param sent when they are out of our hands. */
  send(parts: readonly Uint8Array[], sent?: () => void): void {
    if (this.#failure !== undefined) return;
    if (!this.#corked) {
      this.#corked = true;
      this.#socket.cork();
      queueMicrotask(() => {
        this.#corked = false;
        this.#socket.uncork();
      });
    }
    parts.forEach((part, index) => {
      if (sent !== undefined && index === parts.length - 1) this.#socket.write(part, () => sent());
      else this.#socket.write(part);
    });
  }

  /** Calls back each time nothing came or went for this long. */
  watchIdle(ms: number, onIdle: () => void): void {
    this.#socket.setTimeout(ms, onIdle);
  }

  /** Sends what is queued, then closes. Waits for the peer to close, but not long. */
  async end(): Promise<void> {
    if (this.#failure !== undefined) return;
    const closed = once(this.#socket, "close", { signal: AbortSignal.timeout(LINGER_MS) });
    this.#socket.end();
    await closed.catch(() => undefined);
    this.destroy(lostError(`Connection to ${this.#address.uri} was closed`));
  }

  destroy(reason: unknown): void {
    if (this.#failure !== undefined) return;
    this.#failure = { reason };
    this.#socket.destroy();
    this.receiver.fail(reason);
    this.#onFailure?.(reason);
  }

  #take(bytes: () => void): void {
    try {
      bytes();
    } catch (error) {
      this.destroy(error);
    }
  }

  #watch(socket: Socket): void {
    const { uri } = this.#address;
    socket.on("error", (error) => {
      // A server tells after its side of the TLS handshake that it does not accept our certificate.
      const refused = systemCode(error)?.startsWith("ERR_SSL_") === true;
      this.destroy(
        refused ? tlsError(uri, error) : lostError(`Connection to ${uri} broke: ${error.message}`, error),
      );
    });
    socket.on("close", () => this.destroy(lostError(`NBD server of ${uri} closed the connection`)));
  }
}

/** How long a server may take to close after DISC, in milliseconds. */
const LINGER_MS = 1000;

function explainConnect(address: NbdAddress, error: unknown): string {
  const where =
    "path" in address.socket ? address.socket.path : `${address.socket.host}:${address.socket.port}`;
  const shown = where.replace("\0", "@"); // as ss(8) and others write the abstract namespace
  const reasons: Readonly<Record<string, string>> = {
    ENOENT: `there is no socket ${shown}`,
    ECONNREFUSED: `nobody listens on ${shown}`,
    EACCES: `no permission for ${shown}`,
    ENOTFOUND: `the host name of ${shown} is not known`,
  };
  return reasons[systemCode(error) ?? ""] ?? messageOf(error);
}

function tlsError(uri: string, error: unknown): AppError {
  return new AppError("credentials", "E_NBD_TLS", `TLS with ${uri} failed: ${explainTls(error)}`, {}, error);
}

function explainTls(error: unknown): string {
  const hints: Readonly<Record<string, string>> = {
    SELF_SIGNED_CERT_IN_CHAIN: "its certificate is of an authority that is not in tls-certificates",
    UNABLE_TO_VERIFY_LEAF_SIGNATURE: "its certificate is of an authority that is not in tls-certificates",
    UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "its certificate is of an authority that is not in tls-certificates",
    ECONNRESET: "the server refused us; check the user, key or client certificate",
  };
  const hint = hints[systemCode(error) ?? ""];
  return hint === undefined ? messageOf(error) : `${hint} (${messageOf(error)})`;
}
