import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { minioClient } from "./minio.ts";
import {
  answers,
  describeServer,
  freePort,
  needProgram,
  startProcess,
  type ServerProcess,
} from "./s3-process.ts";

/** A MinIO server that can be killed in the middle of a run and come back with what it had, on the same port. */
export interface RestartableMinio {
  /** "s3://bucket/prefix?…" in a bucket that is there. */
  location(prefix: string): string;
  readonly env: Readonly<Record<string, string>>;
  /** Ends it as a crash would. */
  kill(): Promise<void>;
  /** Resolves when it takes requests again. */
  start(): Promise<void>;
  /** Ends it and removes its data. */
  stop(): Promise<void>;
}

export async function startRestartableMinio(): Promise<RestartableMinio> {
  const directory = await mkdtemp(join(tmpdir(), "blockhaul-minio-"));
  const port = await freePort();
  const server = describeServer(`http://127.0.0.1:${port}`, "minio-access", "minio-secret");
  const data = join(directory, "data");
  await mkdir(data);
  let child: ServerProcess | undefined;
  const kill = async (): Promise<void> => {
    const running = child;
    child = undefined;
    await running?.stop();
  };
  const start = async (): Promise<void> => {
    child = await startProcess(
      needProgram("minio"),
      ["server", data, "--address", `127.0.0.1:${port}`, "--certs-dir", join(directory, "certs")],
      {
        env: {
          ...process.env,
          MINIO_ROOT_USER: server.accessKey,
          MINIO_ROOT_PASSWORD: server.secretKey,
          MINIO_BROWSER: "off",
          MINIO_UPDATE: "off",
        },
        log: join(directory, "log"),
        ready: () => answers(`${server.endpoint}/minio/health/cluster`, true),
      },
    );
  };
  await start();
  await minioClient(server).makeBucket("faults", server.region);
  return {
    location: (prefix) => server.location("faults", prefix),
    env: server.env,
    kill,
    start,
    stop: async () => {
      await kill();
      await rm(directory, { recursive: true, force: true });
    },
  };
}
