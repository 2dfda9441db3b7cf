import { once } from "node:events";
import { createServer, isIPv6, type AddressInfo, type Server } from "node:net";
import { AppError, messageOf, systemCode } from "../../errors.ts";
import { encodeString } from "../wire.ts";
import type { ServedDisk } from "./served-disk.ts";
import { Session } from "./session.ts";
import type { ServerTls } from "./tls.ts";

/** An address that clients can be told. */
type Address = { readonly path: string } | { readonly host: string; readonly port: number };

/**
 * Where a server listens. Port 0 means any free one. `fd`: a socket that listens already, by systemd for one; nobody can
 * ask it for the path of a Unix socket, which `path` tells.
 */
export type ServerPlace = Address | { readonly fd: number; readonly path?: string };

export interface NbdServerOptions {
  /** With it, nothing is served in clear text. */
  readonly tls?: ServerTls;
  /** Further clients are turned away at once. */
  readonly connectionsMax?: number;
  /** Requests of one connection that are worked on at once; with more, that client waits. */
  readonly requestsMax?: number;
  /** Bytes of payload of one connection in memory; at least one largest request always fits. */
  readonly bytesMax?: number;
  /** A client that is not done with the handshake by then is cut off. */
  readonly handshakeMs?: number;
  /** What answers under way get when the server closes. */
  readonly lingerMs?: number;
  /** Hears of disks that failed and clients that broke the protocol. */
  readonly onError?: (error: unknown) => void;
}

const DEFAULTS = {
  connectionsMax: 64,
  requestsMax: 16,
  bytesMax: 64 * 1024 * 1024,
  handshakeMs: 10_000,
  lingerMs: 2_000,
} as const;

/**
 * Serves disks over NBD (proto.md): fixed newstyle; simple, structured and extended replies.
 *
 * Disks are shared by all connections and stay the caller's: close them after the server.
 */
export class NbdServer {
  readonly #server: Server;
  readonly #sessions: ReadonlySet<Session>;
  readonly #place: Address;
  readonly #tls: boolean;

  private constructor(server: Server, sessions: ReadonlySet<Session>, place: Address, tls: boolean) {
    this.#server = server;
    this.#sessions = sessions;
    this.#place = place;
    this.#tls = tls;
  }

  /**
   * @param exports by name; may be changed while the server runs. A client that names none gets the one called
   *   "", or the only one.
   * @throws AppError E_NBD_LISTEN (usage) when the place cannot be had, E_NBD_STRING (usage) for a name that is
   *   too long.
   */
  static async listen(
    exports: ReadonlyMap<string, ServedDisk>,
    where: ServerPlace,
    options: NbdServerOptions = {},
  ): Promise<NbdServer> {
    for (const name of exports.keys()) encodeString(name, "export name");
    const { tls, onError = (): void => undefined } = options;
    const { requestsMax, bytesMax, connectionsMax, handshakeMs, lingerMs } = { ...DEFAULTS, ...options };
    const setup = { exports, tls, onError, limits: { requestsMax, bytesMax }, handshakeMs, lingerMs };
    const sessions = new Set<Session>();
    // Half open: a client may stop sending and still read what it is owed.
    const server = createServer({ allowHalfOpen: true, noDelay: true, keepAlive: true }, (socket) => {
      const session = new Session(socket, setup);
      sessions.add(session);
      void session.ended.then(() => sessions.delete(session));
    });
    server.maxConnections = connectionsMax;
    try {
      server.listen("fd" in where ? { fd: where.fd } : where);
      await once(server, "listening");
    } catch (error) {
      throw cannotListen(where, error);
    }
    server.on("error", onError); // accepting failed, out of file descriptors for one; the next may go well
    const place = addressOf(where, server.address());
    return new NbdServer(server, sessions, place, tls !== undefined);
  }

  /** The NBD URI of an export, without the client's part of TLS. */
  uri(exportName: string): string {
    const scheme = this.#tls ? "nbds" : "nbd";
    const name = encodeURIComponent(exportName);
    if ("path" in this.#place)
      return `${scheme}+unix:///${name}?socket=${encodeURIComponent(this.#place.path)}`;
    const { host, port } = this.#place;
    return `${scheme}://${isIPv6(host) ? `[${host}]` : host}:${port}/${name}`;
  }

  /**
   * Takes no more clients, lets requests under way be answered for a moment, and ends every connection.
   *
   * @returns when all is over; a Unix socket is gone then.
   */
  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    for (const session of this.#sessions) session.close();
    await closed;
    await Promise.all([...this.#sessions].map((session) => session.ended));
  }
}

function addressOf(where: ServerPlace, bound: AddressInfo | string | null): Address {
  if ("fd" in where) {
    if (bound !== null && typeof bound === "object") return { host: bound.address, port: bound.port };
    return { path: where.path ?? "" };
  }
  return "path" in where ? where : { host: where.host, port: (bound as AddressInfo).port };
}

function cannotListen(where: ServerPlace, error: unknown): AppError {
  const place =
    "fd" in where
      ? `file descriptor ${where.fd}`
      : "path" in where
        ? where.path
        : `${where.host}:${where.port}`;
  const hint =
    systemCode(error) === "EADDRINUSE"
      ? `${place} is taken; stop what listens there, or remove the socket if nothing does`
      : `${place}: ${messageOf(error)}`;
  return new AppError("usage", "E_NBD_LISTEN", `Cannot listen on ${hint}`, { place }, error);
}
