import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { AppError, messageOf, systemCode } from "../../errors.ts";
import type { ServerTls } from "./tls.ts";

/**
 * How a server proves itself by a folder as QEMU and libnbd lay it out: server-cert.pem and server-key.pem, and with
 * `verifyClients` ca-cert.pem, which must have signed the certificates that clients show.
 *
 * @throws AppError E_NBD_TLS_FILES (usage).
 */
export async function certificatesIn(folder: string, verifyClients: boolean): Promise<ServerTls> {
  const [certificate, key] = await Promise.all([
    read(join(folder, "server-cert.pem")),
    read(join(folder, "server-key.pem")),
  ]);
  if (!verifyClients) return { type: "x509", certificate, key };
  return { type: "x509", certificate, key, clientAuthority: await read(join(folder, "ca-cert.pem")) };
}

/**
 * The keys in a file of lines "user:hex", as psktool writes it: each of these users is let in.
 *
 * @throws AppError E_NBD_TLS_FILES (usage); the message never has a key.
 */
export async function pskKeysIn(file: string): Promise<ServerTls> {
  const lines = (await read(file)).toString("utf8").split(/\r?\n/);
  const keys = new Map<string, Uint8Array>();
  for (const line of lines.filter((one) => one.trim() !== "" && !one.startsWith("#"))) {
    const colon = line.lastIndexOf(":");
    const hex = line.slice(colon + 1).trim();
    if (colon < 1 || !/^([0-9a-f]{2})+$/i.test(hex)) {
      throw new AppError(
        "usage",
        "E_NBD_TLS_FILES",
        `PSK file ${file} has a line that is not "user:hex key"; make one with psktool`,
      );
    }
    keys.set(line.slice(0, colon), Buffer.from(hex, "hex"));
  }
  if (keys.size > 0) return { type: "psk", keys };
  throw new AppError("usage", "E_NBD_TLS_FILES", `PSK file ${file} has no keys`);
}

async function read(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (error) {
    const why = systemCode(error) === "ENOENT" ? "is not there" : `cannot be read: ${messageOf(error)}`;
    throw new AppError("usage", "E_NBD_TLS_FILES", `TLS file ${path} ${why}`, {}, error);
  }
}
