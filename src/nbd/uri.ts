import { isIPv6 } from "node:net";
import { AppError } from "../errors.ts";
import { DEFAULT_PORT } from "./constants.ts";
import { encodeString } from "./wire.ts";

/** How to prove who is who; from the URI's tls-* parameters. */
export interface NbdTlsSettings {
  /** By certificates, or by a key that both sides have. */
  readonly type: "x509" | "psk";
  /** Folder with ca-cert.pem and, for servers that ask for it, client-cert.pem and client-key.pem. */
  readonly certificates?: string;
  /** File of lines "user:hex key", as psktool writes it. */
  readonly pskFile?: string;
  /** Whose line of the PSK file. */
  readonly username?: string;
  /** The name that the server's certificate must bear. */
  readonly hostname?: string;
  /** False only when the user wrote tls-verify-peer=0. */
  readonly verifyPeer: boolean;
}

/** Where an export is. */
export interface NbdAddress {
  /** True for nbds: without encryption there is no connection. */
  readonly tls: boolean;
  readonly socket: { readonly path: string } | { readonly host: string; readonly port: number };
  /** May be empty: the server's default export. */
  readonly exportName: string;
  /** Only when `tls`. */
  readonly tlsSettings?: NbdTlsSettings;
  /** For messages; holds no secrets. */
  readonly uri: string;
}

/** True for anything meant as an NBD URI, right or wrong; `parseNbdUri` tells what is wrong. */
export function isNbdUri(text: string): boolean {
  return /^nbds?(\+[a-z]+)?:/i.test(text);
}

/** Of an export that a server on this machine has on a Unix socket. @param path absolute. */
export function unixAddress(path: string, exportName: string): NbdAddress {
  const uri = `nbd+unix:///${encodeURIComponent(exportName)}?socket=${encodeURIComponent(path)}`;
  return { tls: false, socket: { path }, exportName, uri };
}

/** RFC 3986, appendix B: scheme, "//" authority, path, "?" query, "#" fragment. */
const URI = /^([^:/?#]+):(?:\/\/([^/?#]*))?([^?#]*)(?:\?([^#]*))?(#.*)?$/s;
const SCHEMES = ["nbd", "nbds", "nbd+unix", "nbds+unix"];
const TLS_KEYS = [
  "tls-type",
  "tls-certificates",
  "tls-psk-file",
  "tls-username",
  "tls-hostname",
  "tls-verify-peer",
];
/** sockaddr_un.sun_path less its final NUL (unix(7)). */
const SOCKET_PATH_MAX = 107;

/**
 * An NBD URI as uri.md of the NBD project writes it, with libnbd's tls-certificates, tls-psk-file and
 * tls-username. Not accepted: passwords (NBD has none), fragments, and parameters that nobody would obey.
 *
 * @throws AppError E_NBD_URI (usage), one message per kind of mistake.
 */
export function parseNbdUri(uri: string): NbdAddress {
  const match = URI.exec(uri);
  const scheme = match?.[1]?.toLowerCase() ?? "";
  if (match === null || !SCHEMES.includes(scheme)) {
    throw wrong(uri, "must begin with nbd://, nbds://, nbd+unix:// or nbds+unix://");
  }
  const [authority, path, query, fragment] = [match[2], match[3]!, match[4] ?? "", match[5]];
  if (authority?.includes("@") && /:.*@/.test(authority)) {
    throw wrong(withoutUser(uri), "has a password, which NBD does not know; remove it");
  }
  if (authority === undefined) {
    throw wrong(uri, `must have // after ${scheme}:, as in ${scheme}://host/export`);
  }
  if (fragment !== undefined) throw wrong(uri, "has a #; write %23 if it belongs to a name");
  const illegal = /[^\w\-.~:/?@!$&'()*+,;=%[\]]/u.exec(uri);
  if (illegal !== null) {
    throw wrong(uri, `has the character "${illegal[0]}"; write ${encodeURIComponent(illegal[0])}`);
  }
  const parameters = parseQuery(uri, query);
  const place = parseAuthority(uri, authority);
  const unix = scheme.endsWith("+unix");
  const tls = scheme.startsWith("nbds");
  const socket = unix ? unixSocket(uri, parameters, place, tls) : tcpSocket(uri, parameters, place);
  const exportName = decode(uri, path.slice(1));
  encodeString(exportName, "export name");
  const address = { tls, socket, exportName, uri };
  if (tls) return { ...address, tlsSettings: tlsSettings(uri, parameters, place, unix) };
  const idle = [...parameters.keys()].find((key) => TLS_KEYS.includes(key));
  if (idle !== undefined) throw wrong(uri, `has ${idle}, which needs nbds${unix ? "+unix" : ""}://`);
  if (place.user !== undefined) throw wrong(uri, "has a user name, which only nbds:// can use");
  return address;
}

interface Place {
  readonly user?: string;
  /** Empty when there is none. */
  readonly host: string;
  readonly port?: number;
}

function parseAuthority(uri: string, authority: string): Place {
  const match = /^(?:([^@]*)@)?(\[[^\]]*\]|[^:[\]@]*)(?::(\d*))?$/.exec(authority);
  if (match === null)
    throw wrong(uri, `has "${authority}" where host:port should be; put IPv6 in [brackets]`);
  const [user, bracketed, digits] = [match[1], match[2]!, match[3] ?? ""];
  const host = decode(uri, bracketed.replace(/^\[(.*)\]$/, "$1"));
  if (bracketed.startsWith("[") && !isIPv6(host)) throw wrong(uri, `has [${host}], which is no IPv6 address`);
  if (!/^[\w.~:%-]*$/.test(host)) throw wrong(uri, `has "${bracketed}", which is no host name`);
  const port = digits === "" ? undefined : Number(digits);
  if (port !== undefined && (port < 1 || port > 65_535)) {
    throw wrong(uri, `has port ${digits}; ports are 1 to 65535`);
  }
  return {
    host,
    ...(user === undefined ? {} : { user: decode(uri, user) }),
    ...(port === undefined ? {} : { port }),
  };
}

function parseQuery(uri: string, query: string): ReadonlyMap<string, string> {
  const parameters = new Map<string, string>();
  for (const part of query.split("&").filter((text) => text !== "")) {
    const split = part.indexOf("=");
    if (split < 0) throw wrong(uri, `has the parameter ${part} without a value`);
    const key = decode(uri, part.slice(0, split));
    if (key !== "socket" && !TLS_KEYS.includes(key)) throw wrong(uri, `has an unknown parameter: ${key}`);
    if (parameters.has(key)) throw wrong(uri, `has ${key} twice`);
    parameters.set(key, decode(uri, part.slice(split + 1)));
  }
  return parameters;
}

function unixSocket(
  uri: string,
  parameters: ReadonlyMap<string, string>,
  place: Place,
  tls: boolean,
): { path: string } {
  const path = parameters.get("socket") ?? "";
  if (path === "") throw wrong(uri, "needs ?socket=/path/of/the/socket");
  if (path.lastIndexOf("\0") > 0) throw wrong(uri, "has a NUL character inside its socket path");
  if (Buffer.byteLength(path) > SOCKET_PATH_MAX) {
    throw wrong(uri, `has a socket path of more than ${SOCKET_PATH_MAX} bytes, the system's limit`);
  }
  if (place.port !== undefined) throw wrong(uri, "has a port, which a Unix socket has not");
  if (place.host !== "" && !tls) {
    throw wrong(uri, "has a host; write three slashes, as in nbd+unix:///export?socket=/path");
  }
  return { path };
}

function tcpSocket(
  uri: string,
  parameters: ReadonlyMap<string, string>,
  place: Place,
): { host: string; port: number } {
  if (parameters.has("socket")) throw wrong(uri, "has socket=, which needs nbd+unix:// or nbds+unix://");
  return { host: place.host === "" ? "localhost" : place.host, port: place.port ?? DEFAULT_PORT };
}

function tlsSettings(
  uri: string,
  parameters: ReadonlyMap<string, string>,
  place: Place,
  unix: boolean,
): NbdTlsSettings {
  const pskFile = parameters.get("tls-psk-file");
  const certificates = parameters.get("tls-certificates");
  const type = parameters.get("tls-type") ?? (pskFile === undefined ? "x509" : "psk");
  if (type === "anon") throw wrong(uri, "has tls-type=anon, which proves nothing; use x509 or psk");
  if (type !== "x509" && type !== "psk") throw wrong(uri, `has tls-type=${type}; use x509 or psk`);
  if (type === "psk" && pskFile === undefined) throw wrong(uri, "needs tls-psk-file=FILE");
  if (type === "x509" && pskFile !== undefined)
    throw wrong(uri, "has tls-psk-file, which needs tls-type=psk");
  if (type === "psk" && certificates !== undefined) {
    throw wrong(uri, "has both tls-psk-file and tls-certificates; use one");
  }
  const named = parameters.get("tls-username");
  if (named !== undefined && place.user !== undefined && named !== place.user) {
    throw wrong(uri, "has two user names");
  }
  const username = named ?? place.user;
  const verifyPeer = parseSwitch(uri, parameters.get("tls-verify-peer") ?? "1");
  const hostname = parameters.get("tls-hostname") ?? (unix && place.host === "" ? undefined : place.host);
  if (type === "x509" && verifyPeer && hostname === undefined) {
    throw wrong(
      uri,
      "needs tls-hostname=NAME, the name in the certificate of the server behind the Unix socket",
    );
  }
  return {
    type,
    verifyPeer,
    ...(certificates === undefined ? {} : { certificates }),
    ...(pskFile === undefined ? {} : { pskFile }),
    ...(username === undefined ? {} : { username }),
    ...(hostname === undefined ? {} : { hostname: hostname === "" ? "localhost" : hostname }),
  };
}

function parseSwitch(uri: string, text: string): boolean {
  if (text === "1" || text === "true") return true;
  if (text === "0" || text === "false") return false;
  throw wrong(uri, `has tls-verify-peer=${text}; use 0 or 1`);
}

function decode(uri: string, text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw wrong(uri, `has a wrong percent-encoding in "${text}"`);
  }
}

function withoutUser(uri: string): string {
  return uri.replace(/\/\/[^/?#]*@/, "//…@");
}

function wrong(uri: string, why: string): AppError {
  return new AppError("usage", "E_NBD_URI", `NBD URI "${uri}" ${why}`);
}
