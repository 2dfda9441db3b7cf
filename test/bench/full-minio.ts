import { rm } from "node:fs/promises";
import { join } from "node:path";
import { formatSize, MiB } from "../../src/bytes/size.ts";
import { compareFiles } from "../support/images.ts";
import { startMinio } from "../support/minio.ts";
import type { S3Server } from "../support/s3-process.ts";
import { FreshRepository, makeMixedImage, whileExported } from "./disks.ts";
import {
  atMost,
  blockhaul,
  type Command,
  documentOf,
  type Finding,
  inFolder,
  interleave,
  measure,
  note,
  peakOf,
  ratioAtMost,
} from "./harness.ts";

/** Full backup to MinIO against the plain bytes through rclone; then restore against backup. */
export async function fullMinio(rounds: number): Promise<Finding[]> {
  return inFolder(async (folder) => {
    const image = await makeMixedImage(folder);
    const server = await startMinio();
    try {
      const bucket = await server.createBucket("bench");
      return await whileExported(["-f", "raw", image], ({ uri }) => {
        return compare(rounds, { folder, image, uri, server, bucket });
      });
    } finally {
      await server.stop();
    }
  });
}

interface Place {
  readonly folder: string;
  readonly image: string;
  readonly uri: string;
  readonly server: S3Server;
  readonly bucket: string;
}

async function compare(rounds: number, { folder, image, uri, server, bucket }: Place): Promise<Finding[]> {
  const [object, prefix] = [`remote:${bucket}/mixed.raw`, `remote:${bucket}/repository`];
  const remove = (path: string) => async (): Promise<void> => {
    await measure(rclone(server, "delete", path));
  };
  const repository = new FreshRepository(
    server.location(bucket, "repository"),
    folder,
    remove(prefix),
    server.env,
  );
  const back = join(folder, "back.raw");
  const sides = await interleave(rounds, {
    backup: {
      prepare: () => repository.start(),
      run: () => measure(blockhaul(["backup", uri, "--name", "mixed", "--json"], repository.env)),
    },
    "nbdcopy | rclone rcat": {
      prepare: remove(object),
      run: () =>
        measure(
          { program: "nbdcopy", args: [uri, "-"] },
          rclone(server, "rcat", "--s3-chunk-size", "16M", "--s3-upload-concurrency", "4", object),
        ),
    },
    restore: {
      prepare: () => rm(back, { force: true }),
      run: () => measure(blockhaul(["restore", "mixed", "--to", back, "--json"], repository.env)),
    },
  });
  const difference = await compareFiles(image, back);
  if (difference !== undefined) throw new Error(difference);
  const { stats } = documentOf(sides.backup.at(-1)!);
  const requests = Object.values(stats.requests).reduce((sum, count) => sum + count, 0);
  return [
    ratioAtMost(
      "full 4 GiB to MinIO / nbdcopy | rclone rcat, wall",
      sides.backup,
      sides["nbdcopy | rclone rcat"],
      1.3,
    ),
    atMost("its peak RSS", peakOf(sides.backup), 400 * MiB, formatSize),
    note("its requests", `${requests} for ${formatSize(stats.bytesPacked)}`),
    ratioAtMost("restore from MinIO / that backup, wall", sides.restore, sides.backup, 1),
    note("its peak RSS", formatSize(peakOf(sides.restore))),
  ];
}

/** An rclone that knows the server as "remote:" and no configuration file. */
function rclone(server: S3Server, ...args: readonly string[]): Command {
  return {
    program: "rclone",
    args: ["--config", "", ...args],
    env: {
      AWS_CA_BUNDLE: "", // rclone refuses to start with one
      RCLONE_CONFIG_REMOTE_TYPE: "s3",
      RCLONE_CONFIG_REMOTE_PROVIDER: "Minio",
      RCLONE_CONFIG_REMOTE_ENDPOINT: server.endpoint,
      RCLONE_CONFIG_REMOTE_ACCESS_KEY_ID: server.accessKey,
      RCLONE_CONFIG_REMOTE_SECRET_ACCESS_KEY: server.secretKey,
      RCLONE_CONFIG_REMOTE_REGION: server.region,
    },
  };
}
