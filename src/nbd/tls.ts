import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { isIP } from "node:net";
import { checkServerIdentity, type ConnectionOptions } from "node:tls";
import { AppError, messageOf, systemCode } from "../errors.ts";
import type { NbdAddress, NbdTlsSettings } from "./uri.ts";

/**
 * What `tls.connect` needs for an nbds address, the files read.
 *
 * @throws AppError E_NBD_TLS_FILES (usage) for files that are missing or say nothing useful.
 */
export async function tlsOptions(address: NbdAddress): Promise<ConnectionOptions> {
  const settings = address.tlsSettings;
  if (settings === undefined)
    throw new AppError("bug", "E_NBD_NO_TLS", `${address.uri} is not an nbds address`);
  const options = settings.type === "psk" ? await pskOptions(settings) : await x509Options(settings);
  return { minVersion: "TLSv1.2", ...options };
}

async function x509Options(settings: NbdTlsSettings): Promise<ConnectionOptions> {
  const hostname = settings.hostname ?? "";
  const names: ConnectionOptions = {
    rejectUnauthorized: settings.verifyPeer,
    checkServerIdentity: (_socketsOwn, certificate) => checkServerIdentity(hostname, certificate),
    ...(hostname === "" || isIP(hostname) > 0 ? {} : { servername: hostname }),
  };
  if (settings.certificates === undefined) return names;
  const folder = settings.certificates;
  const ca = await readFile(join(folder, "ca-cert.pem")).catch((error: unknown) => {
    if (systemCode(error) === "ENOENT" && !settings.verifyPeer) return undefined;
    throw badFile(join(folder, "ca-cert.pem"), error);
  });
  const [cert, key] = await Promise.all([
    optionalFile(join(folder, "client-cert.pem")),
    optionalFile(join(folder, "client-key.pem")),
  ]);
  if ((cert === undefined) !== (key === undefined)) {
    throw new AppError(
      "usage",
      "E_NBD_TLS_FILES",
      `${folder} must have both client-cert.pem and client-key.pem, or neither`,
    );
  }
  return { ...names, ...(ca && { ca }), ...(cert && { cert }), ...(key && { key }) };
}

/**
 * Only suites by which the server proves that it has the key; with forward secrecy where both sides have it.
 * TLS 1.3 has no such suites of its own and could fall back to a certificate unnoticed.
 */
export const PSK_SUITES = [
  "ECDHE-PSK-CHACHA20-POLY1305",
  "DHE-PSK-AES256-GCM-SHA384",
  "DHE-PSK-AES128-GCM-SHA256",
  "ECDHE-PSK-AES256-CBC-SHA384",
  "ECDHE-PSK-AES128-CBC-SHA256",
  "PSK-AES256-GCM-SHA384",
  "PSK-AES128-GCM-SHA256",
].join(":");

async function pskOptions(settings: NbdTlsSettings): Promise<ConnectionOptions> {
  const file = settings.pskFile ?? "";
  const text = await readFile(file, "utf8").catch((error: unknown) => {
    throw badFile(file, error);
  });
  const { username, key } = pickPsk(file, text, settings.username);
  return {
    maxVersion: "TLSv1.2",
    ciphers: PSK_SUITES,
    pskCallback: () => ({ psk: key, identity: username }),
    checkServerIdentity: () => undefined, // there is no certificate; the suites above prove the key
  };
}

/**
 * A user's key from lines "user:hex".
 *
 * @param wanted may be absent when the file has only one line.
 * @throws AppError E_NBD_TLS_FILES (usage); the message never has the key.
 */
export function pickPsk(
  file: string,
  text: string,
  wanted: string | undefined,
): { username: string; key: Buffer } {
  const lines = text.split(/\r?\n/).filter((line) => line.includes(":") && !line.startsWith("#"));
  const entries = lines.map((line) => [line.slice(0, line.lastIndexOf(":")), line] as const);
  const found = wanted === undefined ? entries : entries.filter(([user]) => user === wanted);
  const [username, line] = found[0] ?? [];
  if (username === undefined || line === undefined) {
    const who = wanted === undefined ? "user:key" : `"${wanted}"`;
    throw new AppError("usage", "E_NBD_TLS_FILES", `PSK file ${file} has no line for ${who}`);
  }
  if (found.length > 1 && wanted === undefined) {
    throw new AppError(
      "usage",
      "E_NBD_TLS_FILES",
      `PSK file ${file} has keys of ${found.length} users; name one, as in nbds://user@host/`,
    );
  }
  const hex = line.slice(username.length + 1).trim();
  if (!/^([0-9a-f]{2})+$/i.test(hex)) {
    throw new AppError(
      "usage",
      "E_NBD_TLS_FILES",
      `PSK file ${file} has a key for "${username}" that is not hex`,
    );
  }
  return { username, key: Buffer.from(hex, "hex") };
}

async function optionalFile(path: string): Promise<Buffer | undefined> {
  try {
    return await readFile(path);
  } catch (error) {
    if (systemCode(error) === "ENOENT") return undefined;
    throw badFile(path, error);
  }
}

function badFile(path: string, error: unknown): AppError {
  const why = systemCode(error) === "ENOENT" ? "is not there" : `cannot be read: ${messageOf(error)}`;
  return new AppError("usage", "E_NBD_TLS_FILES", `TLS file ${path} ${why}`, {}, error);
}
