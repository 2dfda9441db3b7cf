import { randomBytes } from "node:crypto";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Client } from "minio";
import { describeServer, freePort, needProgram, startProcess, answers, type S3Server } from "./s3-process.ts";

/** The `minio` package's client: it shares no code with the AWS SDK, so it is our independent witness. */
export function minioClient(server: Pick<S3Server, "endpoint" | "accessKey" | "secretKey">): Client {
  const url = new URL(server.endpoint);
  return new Client({
    endPoint: url.hostname,
    port: Number(url.port === "" ? (url.protocol === "https:" ? 443 : 80) : url.port),
    useSSL: url.protocol === "https:",
    accessKey: server.accessKey,
    secretKey: server.secretKey,
    region: "us-east-1",
    pathStyle: true,
  });
}

/**
 * A MinIO server of our own on a loopback port, in a new directory, stopped and removed by `stop()`; about a
 * second to start. With `BLOCKHAUL_TEST_S3=http://ACCESS:SECRET@HOST:PORT` that server is used instead: buckets
 * get unique names there, and are left behind.
 *
 * @param options.region what the server insists on; any will do unless told.
 * @param options.tls folder with MinIO's `public.crt` and `private.key`: the server then speaks https only.
 */
export async function startMinio(
  options: { readonly tls?: string; readonly region?: string } = {},
): Promise<S3Server> {
  const given = process.env["BLOCKHAUL_TEST_S3"];
  if (given !== undefined && given !== "" && Object.keys(options).length === 0) return givenServer(given);
  const directory = await mkdtemp(join(tmpdir(), "blockhaul-minio-"));
  const port = await freePort();
  const scheme = options.tls === undefined ? "http" : "https";
  const server = describeServer(`${scheme}://127.0.0.1:${port}`, "minio-access", "minio-secret");
  const data = join(directory, "data");
  await mkdir(data);
  const child = await startProcess(
    needProgram("minio"),
    [
      "server",
      data,
      "--address",
      `127.0.0.1:${port}`,
      "--certs-dir",
      options.tls ?? join(directory, "certs"),
    ],
    {
      env: {
        ...process.env,
        MINIO_ROOT_USER: server.accessKey,
        MINIO_ROOT_PASSWORD: server.secretKey,
        MINIO_BROWSER: "off",
        MINIO_UPDATE: "off",
        ...(options.region === undefined ? {} : { MINIO_SITE_REGION: options.region }),
      },
      log: join(directory, "log"),
      // it listens before it can serve; this page says when it takes writes
      ready: () => answers(`${server.endpoint}/minio/health/cluster`, true),
    },
  );
  return {
    ...server,
    createBucket: async (name) => {
      await minioClient(server).makeBucket(name, server.region);
      return name;
    },
    stop: async () => {
      await child.stop();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

function givenServer(given: string): S3Server {
  const url = new URL(given);
  const server = describeServer(
    url.origin,
    decodeURIComponent(url.username),
    decodeURIComponent(url.password),
  );
  return {
    ...server,
    createBucket: async (name) => {
      const unique = `${name}-${randomBytes(6).toString("hex")}`;
      await minioClient(server).makeBucket(unique, server.region);
      return unique;
    },
    stop: async () => {},
  };
}
