import type { Socket } from "node:net";
import { createServer, type TlsOptions, type TLSSocket } from "node:tls";
import { PSK_SUITES } from "../tls.ts";

/**
 * How the server proves itself and, by `clientAuthority` or the key, lets only some clients in. A server with TLS
 * serves nothing without it (proto.md, "FORCEDTLS mode").
 */
export type ServerTls =
  | {
      readonly type: "x509";
      /** PEM. */
      readonly certificate: string | Uint8Array;
      readonly key: string | Uint8Array;
      /** PEM; given, a client must show a certificate that it signed. */
      readonly clientAuthority?: string | Uint8Array;
    }
  | { readonly type: "psk"; readonly keys: ReadonlyMap<string, Uint8Array> };

function optionsOf(tls: ServerTls): TlsOptions {
  if (tls.type === "psk") {
    return {
      minVersion: "TLSv1.2",
      // Node cannot tell apart which of TLS 1.3's suites came about by a key.
      maxVersion: "TLSv1.2",
      ciphers: PSK_SUITES,
      // Finite-field groups of OpenSSL's choice: clients may have no elliptic curve suite with PSK.
      dhparam: "auto",
      pskCallback: (_socket, identity) => toView(tls.keys.get(identity)),
    };
  }
  return {
    minVersion: "TLSv1.2",
    cert: toBuffer(tls.certificate),
    key: toBuffer(tls.key),
    ...(tls.clientAuthority !== undefined && {
      ca: toBuffer(tls.clientAuthority),
      requestCert: true,
      rejectUnauthorized: true,
    }),
  };
}

/**
 * Runs the server's side of a TLS handshake on a socket that nobody else reads.
 *
 * @throws what TLS says is wrong; the caller's deadline ends it by destroying the socket.
 */
export async function secure(socket: Socket, tls: ServerTls): Promise<TLSSocket> {
  return await new Promise<TLSSocket>((resolve, reject) => {
    // A TLS server that does not listen: Node checks a client's certificate only on this way.
    const server = createServer({ ...optionsOf(tls), allowHalfOpen: true }, resolve);
    server.on("tlsClientError", reject);
    socket.once("close", () => reject(new Error("The connection ended during the TLS handshake")));
    server.emit("connection", socket);
  });
}

function toBuffer(pem: string | Uint8Array): Buffer {
  return typeof pem === "string" ? Buffer.from(pem) : Buffer.from(pem.buffer, pem.byteOffset, pem.byteLength);
}

function toView(key: Uint8Array | undefined): DataView | null {
  return key === undefined ? null : new DataView(key.buffer, key.byteOffset, key.byteLength);
}
