import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { describeExport, listExports } from "../../src/nbd/exports.ts";
import { openNbdSource } from "../../src/nbd/source.ts";
import { parseNbdUri } from "../../src/nbd/uri.ts";
import { makeCertificates, makePskFile, type Certificates } from "../support/certificates.ts";
import type { NbdProcess, NbdProcessOptions } from "../support/nbd-process.ts";
import { startNbdkit } from "../support/nbdkit.ts";
import { startQemuNbd } from "../support/qemu-nbd.ts";

const { signal } = new AbortController();
/** A multiple of 512: qemu-nbd rounds up what is not. */
const SIZE = 304_128;

let folder: string;
let image: string;
let keys: string;
let certificates: Certificates;
let strangers: Certificates;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbd-tls-"));
  keys = join(folder, "keys.psk");
  image = join(folder, "disk.raw");
  await writeFile(image, Buffer.alloc(SIZE, 7));
  await makePskFile(keys, ["backup", "other"]);
  certificates = await makeCertificates(join(folder, "own"));
  strangers = await makeCertificates(join(folder, "strangers"));
});

afterAll(() => rm(folder, { recursive: true }));

async function nbdkit(args: readonly string[], options: NbdProcessOptions = {}): Promise<NbdProcess> {
  const server = await startNbdkit(["--tls=require", ...args, "file", image], options);
  onTestFinished(() => server.stop());
  return server;
}

async function qemuNbd(args: readonly string[]): Promise<NbdProcess> {
  const server = await startQemuNbd([...args, "--tls-creds=t", "-r", "-f", "raw", image], { tcp: true });
  onTestFinished(() => server.stop());
  return server;
}

/** The server's URI over TLS, with parameters added and the host "127.0.0.1" or nothing replaced. */
function secure(server: NbdProcess, parameters: string, authority = ""): string {
  if (server.port === undefined) {
    return `${server.uri.replace("nbd+unix://", `nbds+unix://${authority}`)}&${parameters}`;
  }
  return `nbds://${authority === "" ? "localhost" : authority}:${server.port}/?${parameters}`;
}

async function expectReadable(uri: string): Promise<void> {
  const source = await openNbdSource(parseNbdUri(uri), {}, signal);
  onTestFinished(() => source.close());
  const into = Buffer.alloc(source.size);
  await Promise.all([
    source.read(0, into.subarray(0, 100_000), signal),
    source.read(100_000, into.subarray(100_000), signal),
  ]);
  expect(into.equals(Buffer.alloc(SIZE, 7))).toBe(true);
  expect(await describeExport(parseNbdUri(uri), signal)).toMatchObject({ size: SIZE, tls: true });
  expect(await listExports(parseNbdUri(uri), signal)).toHaveLength(1);
}

async function expectRefused(uri: string, code: string, reason: RegExp): Promise<void> {
  const opening = openNbdSource(parseNbdUri(uri), {}, signal);
  await expect(opening).rejects.toMatchObject({ code });
  await expect(opening).rejects.toThrow(reason);
}

test("nbdkit with a pre-shared key, over TCP and a Unix socket", async () => {
  const tcp = await nbdkit([`--tls-psk=${keys}`], { tcp: true });
  await expectReadable(secure(tcp, `tls-psk-file=${keys}`, "backup@127.0.0.1"));
  const unix = await nbdkit([`--tls-psk=${keys}`]);
  await expectReadable(secure(unix, `tls-psk-file=${keys}&tls-username=other`));
});

test("nbdkit with certificates, over TCP and a Unix socket", async () => {
  const tcp = await nbdkit([`--tls-certificates=${certificates.server}`], { tcp: true });
  await expectReadable(secure(tcp, `tls-certificates=${certificates.anonymous}`));
  await expectReadable(secure(tcp, `tls-certificates=${certificates.anonymous}`, "127.0.0.1"));
  const unix = await nbdkit([`--tls-certificates=${certificates.server}`]);
  await expectReadable(secure(unix, `tls-certificates=${certificates.anonymous}`, "localhost"));
});

test("nbdkit that wants a certificate of the client", async () => {
  const server = await nbdkit([`--tls-certificates=${certificates.server}`, "--tls-verify-peer"], {
    tcp: true,
  });
  await expectReadable(secure(server, `tls-certificates=${certificates.client}`));
  const without = secure(server, `tls-certificates=${certificates.anonymous}`);
  await expectRefused(without, "E_NBD_CONNECT", /may not accept the certificate in tls-certificates/);
});

test("qemu-nbd with a pre-shared key", async () => {
  const server = await qemuNbd(["--object", `tls-creds-psk,id=t,dir=${folder},endpoint=server`]);
  await expectReadable(secure(server, `tls-psk-file=${keys}`, "backup@localhost"));
});

test("qemu-nbd with certificates on both sides", async () => {
  const creds = `tls-creds-x509,id=t,dir=${certificates.server},endpoint=server,verify-peer=on`;
  const server = await qemuNbd(["--object", creds]);
  await expectReadable(secure(server, `tls-certificates=${certificates.client}`));
});

test("a server with TLS that is killed and started again is read on", async () => {
  const server = await nbdkit([`--tls-psk=${keys}`], { tcp: true });
  const uri = secure(server, `tls-psk-file=${keys}`, "backup@localhost");
  const retry = { attemptsMax: 1000, baseMs: 5, waitMaxMs: 50, budgetMs: 50_000 };
  const source = await openNbdSource(parseNbdUri(uri), { retry }, signal);
  onTestFinished(() => source.close());
  await source.read(0, Buffer.alloc(1000), signal);
  await server.kill();
  const read = source.read(0, Buffer.alloc(1000), signal);
  await nbdkit([`--tls-psk=${keys}`], { insteadOf: server });
  await read;
});

test("a server that wants TLS tells a plain client what to write", async () => {
  const server = await nbdkit([`--tls-psk=${keys}`]);
  await expectRefused(server.uri, "E_NBD_TLS_REQUIRED", /wants TLS; write nbds in place of nbd/);
  const listing = listExports(parseNbdUri(server.uri), signal);
  await expect(listing).rejects.toMatchObject({ code: "E_NBD_TLS_REQUIRED", kind: "usage" });
});

test("a server without TLS is refused, not used in clear", async () => {
  const server = await startNbdkit(["file", image]);
  onTestFinished(() => server.stop());
  await expectRefused(
    secure(server, `tls-psk-file=${keys}`, "backup@"),
    "E_NBD_NO_TLS_OFFER",
    /does not offer TLS/,
  );
});

test("a stranger's server is not believed", async () => {
  const server = await nbdkit([`--tls-certificates=${certificates.server}`], { tcp: true });
  const stranger = `tls-certificates=${strangers.anonymous}`;
  await expectRefused(secure(server, stranger), "E_NBD_TLS", /authority that is not in tls-certificates/);
  await expectRefused(secure(server, ""), "E_NBD_TLS", /authority that is not in tls-certificates/);
  await expectReadable(secure(server, `${stranger}&tls-verify-peer=0`));
});

test("a certificate for another name is not believed", async () => {
  const server = await nbdkit([`--tls-certificates=${certificates.server}`], { tcp: true });
  const query = `tls-certificates=${certificates.anonymous}&tls-hostname=elsewhere`;
  await expectRefused(secure(server, query), "E_NBD_TLS", /elsewhere/);
});

test("a wrong key is refused", async () => {
  const wrong = join(folder, "wrong.psk");
  await writeFile(wrong, `backup:${"00".repeat(32)}\n`);
  const server = await nbdkit([`--tls-psk=${keys}`], { tcp: true });
  await expectRefused(secure(server, `tls-psk-file=${wrong}`, "backup@localhost"), "E_NBD_TLS", /TLS with/);
});

test("a server with a certificate cannot stand in for one with the key", async () => {
  const server = await nbdkit([`--tls-certificates=${certificates.server}`], { tcp: true });
  await expectRefused(secure(server, `tls-psk-file=${keys}`, "backup@localhost"), "E_NBD_TLS", /TLS with/);
});

test("TLS files that are missing or say nothing are named", async () => {
  const server = await nbdkit([`--tls-psk=${keys}`], { tcp: true });
  const [file, code] = [join(folder, "bad.psk"), "E_NBD_TLS_FILES"];
  await expectRefused(secure(server, `tls-psk-file=${folder}/none`), code, /none is not there/);
  await expectRefused(secure(server, `tls-psk-file=${folder}`), code, /cannot be read/);
  await expectRefused(secure(server, `tls-psk-file=${keys}`), code, /keys of 2 users; name one/);
  await expectRefused(secure(server, `tls-psk-file=${keys}&tls-username=x`), code, /no line for "x"/);
  await writeFile(file, "backup:xyz\n");
  await expectRefused(secure(server, `tls-psk-file=${file}`), code, /not hex/);
  await writeFile(file, "# nothing\n");
  await expectRefused(secure(server, `tls-psk-file=${file}`), code, /no line for user:key/);
  await expectRefused(secure(server, `tls-certificates=${folder}`), code, /ca-cert.pem is not there/);
  await writeFile(join(certificates.anonymous, "client-key.pem"), "x");
  onTestFinished(() => rm(join(certificates.anonymous, "client-key.pem")));
  await expectRefused(secure(server, `tls-certificates=${certificates.anonymous}`), code, /must have both/);
});
