import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { minioClient } from "./minio.ts";
import { answers, describeServer, freePort, needProgram, startProcess, type S3Server } from "./s3-process.ts";

/** A versitygw server of our own, storing files below a new directory, `data`; stopped and removed by `stop()`. */
export async function startVersitygw(): Promise<S3Server & { readonly data: string }> {
  const directory = await mkdtemp(join(tmpdir(), "blockhaul-versitygw-"));
  const port = await freePort();
  const server = describeServer(`http://127.0.0.1:${port}`, "versity-access", "versity-secret");
  const data = join(directory, "data");
  await mkdir(data);
  const child = await startProcess(
    needProgram("versitygw"),
    ["--access", server.accessKey, "--secret", server.secretKey, "--port", `127.0.0.1:${port}`]
      .concat(["--health", "/health", "--region", server.region])
      .concat(["posix", data]),
    {
      log: join(directory, "log"),
      ready: () => answers(`${server.endpoint}/health`, true),
    },
  );
  return {
    ...server,
    data,
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
