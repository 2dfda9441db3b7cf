import { execFile } from "node:child_process";
import { cp, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

/** Folders as nbdkit's and QEMU's --tls-certificates and the NBD URI's tls-certificates want them. */
export interface Certificates {
  /** ca-cert.pem, server-cert.pem and server-key.pem for "localhost" and 127.0.0.1. */
  readonly server: string;
  /** ca-cert.pem, client-cert.pem and client-key.pem for "backup-client". */
  readonly client: string;
  /** ca-cert.pem alone: a client without a certificate of its own. */
  readonly anonymous: string;
}

/** Makes an authority and both sides' certificates, valid for a day, with certtool. */
export async function makeCertificates(folder: string): Promise<Certificates> {
  const [server, client, anonymous] = ["server", "client", "anonymous"].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  await Promise.all([server, client, anonymous].map((path) => mkdir(path, { recursive: true })));
  const [caKey, ca] = [join(folder, "ca-key.pem"), join(server, "ca-cert.pem")];
  await makeKey(caKey);
  const caTemplate = join(folder, "ca.template");
  await writeFile(caTemplate, "cn = Test authority\nca\ncert_signing_key\nexpiration_days = 1\n");
  await run("certtool", [
    "--generate-self-signed",
    "--load-privkey",
    caKey,
    "--template",
    caTemplate,
    "--outfile",
    ca,
  ]);
  const forServer = "cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\ntls_www_server\n";
  await issue(folder, server, "server", forServer, ca, caKey);
  await issue(folder, client, "client", "cn = backup-client\ntls_www_client\n", ca, caKey);
  await Promise.all([client, anonymous].map((path) => cp(ca, join(path, "ca-cert.pem"))));
  return { server, client, anonymous };
}

async function issue(
  folder: string,
  into: string,
  name: string,
  template: string,
  ca: string,
  caKey: string,
): Promise<void> {
  const key = join(into, `${name}-key.pem`);
  await makeKey(key);
  const file = join(folder, `${name}.template`);
  await writeFile(file, `${template}signing_key\nencryption_key\nexpiration_days = 1\n`);
  await run("certtool", [
    "--generate-certificate",
    ...["--load-ca-certificate", ca, "--load-ca-privkey", caKey],
    ...["--load-privkey", key, "--template", file, "--outfile", join(into, `${name}-cert.pem`)],
  ]);
}

/** Elliptic, because making an RSA key takes seconds. */
async function makeKey(path: string): Promise<void> {
  await run("certtool", ["--generate-privkey", "--key-type=ecdsa", "--curve=secp256r1", "--outfile", path]);
}

/** A file with a new random key for each user, as nbdkit, QEMU and the NBD URI's tls-psk-file want it. */
export async function makePskFile(path: string, users: readonly string[]): Promise<void> {
  for (const user of users) await run("psktool", ["--username", user, "--pskfile", path]);
}
