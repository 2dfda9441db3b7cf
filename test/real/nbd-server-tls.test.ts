import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import type { ServerTls } from "../../src/nbd/server/tls.ts";
import { NbdServer } from "../../src/nbd/server/server.ts";
import { MemoryDisk, patterned } from "../support/memory-disk.ts";
import { output, run, serve, testFolder } from "../support/serve.ts";

/** TLS against GnuTLS, which both libnbd and QEMU use. Certificates and keys are made here by its own tools. */

const MiB = 1024 * 1024;

async function makeAuthority(folder: string, name: string): Promise<{ certificate: string; key: string }> {
  const place = (file: string): string => join(folder, `${name}-${file}`);
  await writeFile(place("template"), `cn = "${name}"\nca\ncert_signing_key\nexpiration_days = 2\n`);
  await output("certtool", "--generate-privkey", "--ecc", "--outfile", place("key.pem"));
  await output(
    "certtool",
    ...["--generate-self-signed", "--template", place("template")],
    ...["--load-privkey", place("key.pem"), "--outfile", place("cert.pem")],
  );
  return { certificate: place("cert.pem"), key: place("key.pem") };
}

async function makeCertificate(
  authority: { certificate: string; key: string },
  place: { certificate: string; key: string },
  template: string,
): Promise<void> {
  await writeFile(`${place.key}.template`, `${template}\nsigning_key\nexpiration_days = 2\n`);
  await output("certtool", "--generate-privkey", "--ecc", "--outfile", place.key);
  await output(
    "certtool",
    ...["--generate-certificate", "--template", `${place.key}.template`, "--load-privkey", place.key],
    ...["--load-ca-certificate", authority.certificate, "--load-ca-privkey", authority.key],
    ...["--outfile", place.certificate],
  );
}

/** A server with certificates and, in folders, clients: one with a certificate of ours, one of somebody else's. */
async function certificates(): Promise<{
  tls: ServerTls & { type: "x509" };
  client: string;
  stranger: string;
  ca: string;
}> {
  const folder = await testFolder();
  const ours = await makeAuthority(folder, "ours");
  const other = await makeAuthority(folder, "other");
  const server = { certificate: join(folder, "server-cert.pem"), key: join(folder, "server-key.pem") };
  await makeCertificate(ours, server, 'cn = "localhost"\ndns_name = "localhost"\ntls_www_server');
  const clientFolder = async (name: string, authority: typeof ours): Promise<string> => {
    const place = join(folder, name);
    await mkdir(place);
    await writeFile(join(place, "ca-cert.pem"), await readFile(ours.certificate));
    const files = { certificate: join(place, "client-cert.pem"), key: join(place, "client-key.pem") };
    await makeCertificate(authority, files, 'cn = "backup-client"\ntls_www_client');
    return place;
  };
  return {
    tls: { type: "x509", certificate: await readFile(server.certificate), key: await readFile(server.key) },
    client: await clientFolder("client", ours),
    stranger: await clientFolder("stranger", other),
    ca: await readFile(ours.certificate, "utf8"),
  };
}

test("certificates: a client checks the server and reads and writes", async () => {
  const { tls, client, stranger } = await certificates();
  const disk = new MemoryDisk(patterned(5 * MiB));
  const server = await NbdServer.listen(new Map([["disk", disk]]), { host: "127.0.0.1", port: 0 }, { tls });
  onTestFinished(() => server.close());
  const base = server.uri("disk").replace("127.0.0.1", "localhost");
  expect(base).toMatch(/^nbds:\/\/localhost:\d+\/disk$/);
  const uri = `${base}?tls-certificates=${client}`;
  const info = JSON.parse(await output("nbdinfo", "--json", uri)) as object;
  expect(info).toMatchObject({ TLS: true, structured: true });
  const copy = join(await testFolder(), "copy");
  await output("nbdcopy", "--connections=2", uri, copy);
  expect((await readFile(copy)).equals(disk.bytes)).toBe(true);
  const changed = Buffer.from(disk.bytes).reverse();
  await writeFile(copy, changed);
  await output("nbdcopy", copy, uri);
  expect(disk.bytes.equals(changed)).toBe(true);
  // Without a client authority, any client is welcome that trusts us.
  expect(await output("nbdinfo", "--size", `${base}?tls-certificates=${stranger}`)).toBe(`${5 * MiB}\n`);
  const clear = await run("qemu-img", "info", server.uri("disk").replace("nbds", "nbd"));
  expect(clear.stderr).toContain("This server serves nothing without TLS");
});

test("certificates: with a client authority only its clients come in", async () => {
  const { tls, client, stranger, ca } = await certificates();
  const { server, errors } = await serve(
    { disk: new MemoryDisk(patterned(1000)) },
    { tls: { ...tls, clientAuthority: ca } },
  );
  const base = server.uri("disk").replace(":///", "://localhost/");
  expect(await output("nbdinfo", "--size", `${base}&tls-certificates=${client}`)).toBe("1000\n");
  expect((await run("nbdinfo", "--size", `${base}&tls-certificates=${stranger}`)).code).toBe(1);
  expect(await output("nbdinfo", "--size", `${base}&tls-certificates=${client}`)).toBe("1000\n");
  expect(errors).toEqual([]);
});

test("keys: only who has the right one comes in, libnbd and QEMU alike", async () => {
  const folder = await testFolder();
  const right = join(folder, "keys.psk"); // QEMU insists on this name
  const wrong = join(folder, "wrong.psk");
  await output("psktool", "-u", "backup", "-p", right);
  await output("psktool", "-u", "backup", "-p", wrong);
  const [user, hex] = (await readFile(right, "utf8")).trim().split(":");
  const tls: ServerTls = { type: "psk", keys: new Map([[user!, Buffer.from(hex!, "hex")]]) };
  const disk = new MemoryDisk(patterned(3 * MiB));
  const server = await NbdServer.listen(new Map([["disk", disk]]), { host: "127.0.0.1", port: 0 }, { tls });
  onTestFinished(() => server.close());
  const port = new URL(server.uri("disk")).port;
  const uri = (keys: string, name = "backup"): string =>
    `nbds://${name}@127.0.0.1:${port}/disk?tls-psk-file=${keys}`;
  expect(await output("nbdinfo", "--size", uri(right))).toBe(`${3 * MiB}\n`);
  expect((await run("nbdinfo", "--size", uri(wrong))).code).toBe(1);
  expect((await run("nbdinfo", "--size", uri(right, "somebody"))).code).toBe(1);
  const copy = join(folder, "copy.raw");
  await output(
    "qemu-img",
    ...["convert", "--object", `tls-creds-psk,id=t,dir=${folder},endpoint=client,username=backup`],
    ...["--image-opts", `driver=nbd,host=127.0.0.1,port=${port},export=disk,tls-creds=t`, "-O", "raw", copy],
  );
  expect((await readFile(copy)).equals(disk.bytes)).toBe(true);
});
