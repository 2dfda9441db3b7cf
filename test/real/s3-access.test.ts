import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import { promisify } from "node:util";
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import type { S3Options } from "../../src/store/s3-connection.ts";
import { openStore } from "../../src/store/open.ts";
import type { ObjectStore } from "../../src/store/store.ts";
import { failure, pieces } from "../support/outcomes.ts";
import { minioClient, startMinio } from "../support/minio.ts";
import { startRgw } from "../support/rgw.ts";
import { runProgram, type S3Server } from "../support/s3-process.ts";

const signal = new AbortController().signal;
const opened: ObjectStore[] = [];
let server: S3Server;
let bucket: string;

beforeAll(async () => {
  server = await startMinio();
  bucket = await server.createBucket("access");
});
afterAll(() => server.stop());
afterEach(() => {
  vi.unstubAllEnvs();
  for (const store of opened.splice(0)) store.close();
});

async function open(location: string, options: S3Options = {}): Promise<ObjectStore> {
  const store = await openStore(location, options);
  opened.push(store);
  return store;
}

function keys(from: S3Server): { accessKeyId: string; secretAccessKey: string } {
  return { accessKeyId: from.accessKey, secretAccessKey: from.secretKey };
}

/** An environment with nothing of the machine's own in it. */
function stubEnvironment(values: Readonly<Record<string, string>>): void {
  const nothing = {
    AWS_ACCESS_KEY_ID: undefined,
    AWS_SECRET_ACCESS_KEY: undefined,
    AWS_REGION: undefined,
    AWS_PROFILE: undefined,
    AWS_ENDPOINT_URL: undefined,
    AWS_CONFIG_FILE: "/dev/null",
    AWS_SHARED_CREDENTIALS_FILE: "/dev/null",
    AWS_EC2_METADATA_DISABLED: "true",
  };
  for (const [name, value] of Object.entries({ ...nothing, ...values })) vi.stubEnv(name, value);
}

describe("what is found in the environment", () => {
  test("credentials, region and endpoint: the location is the bucket alone", async () => {
    stubEnvironment(server.env);
    const store = await open(`s3://${bucket}/from-environment`);
    await store.put("a", Buffer.from("x"), signal);
    const seen = await minioClient(server).getObject(bucket, "from-environment/a");
    expect(await buffer(seen)).toEqual(Buffer.from("x"));
  });

  test("a profile, and no region with an endpoint in the location", async () => {
    const directory = await mkdtemp(join(tmpdir(), "blockhaul-profile-"));
    const file = join(directory, "credentials");
    const { accessKey, secretKey } = server;
    await writeFile(file, `[backup]\naws_access_key_id=${accessKey}\naws_secret_access_key=${secretKey}\n`);
    stubEnvironment({ AWS_SHARED_CREDENTIALS_FILE: file, AWS_PROFILE: "backup" });
    const store = await open(`s3://${bucket}/p?endpoint=${encodeURIComponent(server.endpoint)}`);
    await store.put("a", Buffer.from("x"), signal);
    await rm(directory, { recursive: true });
  });

  test("an abort ends the search for credentials", { timeout: 20_000 }, async () => {
    const directory = await mkdtemp(join(tmpdir(), "blockhaul-profile-"));
    const file = join(directory, "config");
    await writeFile(file, "[default]\ncredential_process = sleep 30\n");
    stubEnvironment({ AWS_CONFIG_FILE: file });
    const run = new AbortController();
    const reading = failure((await open(server.location(bucket))).get("a", 1, run.signal));
    setTimeout(() => run.abort(new Error("enough")), 50);
    expect(await reading).toBe(run.signal.reason);
    await rm(directory, { recursive: true });
  });

  test("no credentials at all", async () => {
    stubEnvironment({});
    const error = await failure((await open(server.location(bucket))).get("a", 1, signal));
    expect(error).toMatchObject({ kind: "credentials", code: "E_CREDENTIALS" });
    expect(String(error)).toContain("AWS_ACCESS_KEY_ID");
  });

  test("no region", async () => {
    stubEnvironment({ AWS_ACCESS_KEY_ID: "a", AWS_SECRET_ACCESS_KEY: "b" });
    const error = await failure((await open(`s3://${bucket}`)).get("a", 1, signal));
    expect(error).toMatchObject({ kind: "usage", code: "E_REGION" });
    expect(String(error)).toContain("AWS_REGION");
  });
});

describe("what is refused", () => {
  test("a wrong secret and an unknown access key", async () => {
    for (const credentials of [
      { ...keys(server), secretAccessKey: "not-the-secret" },
      { ...keys(server), accessKeyId: "nobody" },
    ]) {
      const error = await failure((await open(server.location(bucket), { credentials })).get("a", 1, signal));
      expect(error).toMatchObject({ kind: "credentials", code: "E_CREDENTIALS" });
      expect(String(error)).not.toContain("not-the-secret");
    }
  });

  test("a bucket that is missing, in every kind of call", async () => {
    const store = await open(server.location("no-such-bucket"), { credentials: keys(server) });
    for (const call of [
      () => store.get("a", 1, signal),
      () => store.put("a", Buffer.from("x"), signal),
      () => store.putStream("a", pieces(Buffer.from("x")), signal),
      () => store.beginUpload("a", signal),
      () => store.list("", signal)[Symbol.asyncIterator]().next(),
      () => store.delete(["a"], signal),
    ]) {
      expect(await failure(call())).toMatchObject({ kind: "notFound", code: "E_NO_BUCKET" });
    }
  });

  test("a host name that does not exist", async () => {
    const location = `s3://${bucket}?endpoint=http://storage.invalid&region=us-east-1`;
    const error = await failure((await open(location, { credentials: keys(server) })).get("a", 1, signal));
    expect(error).toMatchObject({ kind: "unavailable", code: "E_STORE" });
    expect(String(error)).toContain("check the endpoint");
  });

  test("another region than the server's", async () => {
    const elsewhere = await startMinio({ region: "eu-north-1" });
    try {
      const store = await open(elsewhere.location("any"), { credentials: keys(elsewhere) });
      const error = await failure(store.get("a", 1, signal));
      expect(error).toMatchObject({ kind: "usage", code: "E_REGION" });
      expect(String(error)).toContain("?region=eu-north-1");
    } finally {
      await elsewhere.stop();
    }
  });
});

test("a quota that is used up", async () => {
  const rgw = await startRgw();
  try {
    const small = await rgw.createBucket("small");
    rgw.setQuota(1 * MiB);
    const store = await open(rgw.location(small), { credentials: keys(rgw) });
    await store.put("fits", Buffer.alloc(1000), signal);
    const error = await failure(store.put("does-not", Buffer.alloc(8 * MiB), signal));
    expect(error).toMatchObject({ kind: "full", code: "E_STORE_FULL" });
    expect(await store.head("does-not", signal)).toBeUndefined();
    const upload = await store.beginUpload("parts", signal);
    expect(await failure(upload.part(0, Buffer.alloc(5 * MiB), signal))).toMatchObject({ kind: "full" });
    await upload.abort();
  } finally {
    await rgw.stop();
  }
});

describe("https", () => {
  let directory: string;
  let secure: S3Server;
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), "blockhaul-tls-"));
    runProgram("openssl", [
      ...[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
      ],
      ...["-keyout", join(directory, "private.key"), "-out", join(directory, "public.crt")],
      ...["-subj", "/CN=blockhaul test", "-addext", "subjectAltName=IP:127.0.0.1"],
    ]);
    secure = await startMinio({ tls: directory });
  });
  afterAll(async () => {
    await secure.stop();
    await rm(directory, { recursive: true });
  });

  test("a certificate that nobody vouches for is refused, and the advice says what to do", async () => {
    const error = await failure(
      (await open(secure.location("any"), { credentials: keys(secure) })).get("a", 1, signal),
    );
    expect(error).toMatchObject({ kind: "usage", code: "E_TLS" });
    expect(String(error)).toContain("NODE_EXTRA_CA_CERTS");
  });

  test("https to a server that speaks http", async () => {
    const location = `s3://any?endpoint=${server.endpoint.replace("http:", "https:")}&region=us-east-1`;
    const error = await failure((await open(location, { credentials: keys(server) })).get("a", 1, signal));
    expect(error).toMatchObject({ kind: "usage", code: "E_TLS" });
  });

  test("with the advice followed, objects and parts go through, with and without checksums", async () => {
    const script = join(import.meta.dirname, "../support/s3-round-trip.ts");
    const { stdout } = await promisify(execFile)(process.execPath, [script, secure.location("round-trip")], {
      env: { ...process.env, ...secure.env, NODE_EXTRA_CA_CERTS: join(directory, "public.crt") },
    });
    expect(stdout).toBe("ok\n");
  });
});

test("checksums are checked by a server that knows them, also in parts", async () => {
  const store = await open(server.location(bucket, "sums"), { credentials: keys(server), checksums: true });
  const part = Buffer.alloc(5 * MiB, 1);
  const upload = await store.beginUpload("pack", signal);
  await Promise.all([upload.part(0, part, signal), upload.part(1, part.subarray(0, 100), signal)]);
  await upload.complete(signal);
  await store.put("small", Buffer.from("x"), signal);
  expect((await store.head("pack", signal))?.size).toBe(5 * MiB + 100);
});
