import { spawnSync } from "node:child_process";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { minioClient } from "./minio.ts";
import { describeServer, freePort, needProgram, runProgram, type S3Server } from "./s3-process.ts";

export interface RgwServer extends S3Server {
  /** From now on the user may store no more than so many bytes. */
  setQuota(bytes: number): void;
}

/**
 * A Ceph RADOS gateway of our own (`rgw-up.sh`), keeping objects in memory; ended and removed by `stop()`.
 *
 * @param options.lifecycleDay seconds that lifecycle rules take for a day.
 */
export async function startRgw(options: { readonly lifecycleDay?: number } = {}): Promise<RgwServer> {
  needProgram("radosgw");
  const directory = await mkdtemp(join(tmpdir(), "blockhaul-rgw-"));
  const [port, monitorPort] = [await freePort(), await freePort()];
  const server = describeServer(`http://127.0.0.1:${port}`, "rgw-access", "rgw-secret");
  const script = (name: string): string => join(import.meta.dirname, name);
  const stop = (): void => void spawnSync(script("rgw-down.sh"), [directory]);
  process.once("exit", stop);
  const { lifecycleDay } = options;
  runProgram(
    script("rgw-up.sh"),
    [directory, String(port), String(monitorPort), server.accessKey, server.secretKey],
    { ...process.env, ...(lifecycleDay !== undefined && { RGW_LIFECYCLE_DAY: String(lifecycleDay) }) },
  );
  const admin = (...args: string[]): string =>
    runProgram("radosgw-admin", args, { ...process.env, CEPH_CONF: join(directory, "ceph.conf") });
  return {
    ...server,
    createBucket: async (name) => {
      await minioClient(server).makeBucket(name, server.region);
      return name;
    },
    setQuota: (bytes) => {
      admin("quota", "set", "--quota-scope=user", "--uid=test", `--max-size=${bytes}`);
      admin("quota", "enable", "--quota-scope=user", "--uid=test");
    },
    stop: async () => {
      process.removeListener("exit", stop);
      stop();
      await Promise.resolve();
    },
  };
}
