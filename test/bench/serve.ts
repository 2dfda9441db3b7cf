import { spawnSync } from "node:child_process";
import { mkdir, open, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { formatSize, GiB, MiB, TiB } from "../../src/bytes/size.ts";
import { openRepository, type Repository } from "../../src/repository/config.ts";
import { commitGeneration, latestGeneration } from "../../src/repository/generations.ts";
import { NO_PASSWORD } from "../../src/repository/key-slots.ts";
import { storeStack } from "../../src/repository/layer-merge.ts";
import { DiskMap } from "../../src/repository/layer-stack.ts";
import { LayerWriter } from "../../src/repository/layer-writer.ts";
import { uuidv7 } from "../../src/repository/names.ts";
import { DirectoryStore } from "../../src/store/directory.ts";
import { makeImage } from "../support/images.ts";
import { minioClient, startMinio } from "../support/minio.ts";
import { startNbdkit } from "../support/nbdkit.ts";
import { findProgram, startProcess, type S3Server } from "../support/s3-process.ts";
import { startServeProcess } from "../support/serve-process.ts";
import { simulateDisk } from "../support/simulated-disk.ts";
import { FreshRepository, makeMixedImage, whileExported } from "./disks.ts";
import {
  atMost,
  blockhaul,
  type Finding,
  inFolder,
  interleave,
  type Measure,
  measure,
  medianOf,
  note,
  ratioAtMost,
} from "./harness.ts";
import { connected, likeLastTime } from "./serve-profile.ts";

const FIRST_BYTES_BAR = 2;
/** 0.8 of restore's rate. */
const COPY_BAR = 1 / 0.8;
const RANDOM_BAR = 1 / 3;
const RANDOM_READS = 1500;

/** A generation served: how soon, how fast front to back, how fast here and there. */
export async function serve(rounds: number): Promise<Finding[]> {
  return [
    ...(await firstBytes(rounds)),
    ...(await frontToBack(rounds)),
    ...(await hereAndThere(rounds)),
    ...(await likeLastTime(rounds)),
  ];
}

/** From the command's start to the first 512 bytes of a full 1 TiB disk with ten incrementals on top. */
async function firstBytes(rounds: number): Promise<Finding[]> {
  return inFolder(async (folder) => {
    const repository = FreshRepository.inFolder(folder);
    await repository.start();
    await storeTebibyte(folder, repository);
    const socket = join(folder, "s");
    const seconds: number[] = [];
    for (let round = 0; round < rounds; round++) {
      const started = performance.now();
      const served = await startServeProcess(repository.env, ["web", "--socket", socket]);
      await measure({ program: "qemu-io", args: ["-f", "raw", "-r", "-c", "read -P 7 0 512", served.uri] });
      seconds.push((performance.now() - started) / 1000);
      await served.end("SIGTERM");
    }
    const show = (value: number): string => `${value.toFixed(2)} s`;
    return [atMost("serve 1 TiB: first 512 bytes since the start", medianOf(seconds), FIRST_BYTES_BAR, show)];
  });
}

/** A real generation of 1 TiB gives the first chunk; under it comes what a full disk's backups would have left. */
async function storeTebibyte(folder: string, { location, env }: FreshRepository): Promise<void> {
  const image = join(folder, "sparse.raw");
  const file = await open(image, "w");
  await file.write(Buffer.alloc(MiB, 7));
  await file.truncate(TiB);
  await file.close();
  await whileExported(["-f", "raw", image], ({ uri }) =>
    measure(blockhaul(["backup", uri, "--name", "web"], env)),
  );
  const { signal } = new AbortController();
  const repository: Repository = await openRepository(new DirectoryStore(location), signal, NO_PASSWORD);
  const real = (await latestGeneration(repository, "web", signal))!;
  const disk = real.disks[0]!;
  const map = await DiskMap.open(repository, disk, signal);
  const { value: first } = await map.runs(0, 1, signal).next();
  if (first === undefined || first.where === "zero") throw new Error("the first chunk is not stored");
  const { packRef, slot } = first.where;
  const shape = {
    size: TiB,
    chunkSize: disk.chunkSize,
    incrementals: 10,
    dirtyChunks: 1000,
    duplicatePercent: 10,
  };
  const simulated = await simulateDisk(repository, { ...shape, seed: 1 }, signal);
  const writer = new LayerWriter(TiB, disk.chunkSize);
  writer.add(0, 1, { pack: packRef.pack, slot });
  const layers = await storeStack(repository, writer, () => packRef, simulated, signal);
  const manifest = {
    ...real,
    generation: uuidv7(Date.now()),
    parent: null,
    sequence: real.sequence + 1,
    disks: [{ ...disk, layers }],
  };
  for (const own of ["digest", "storedBytes"]) Reflect.deleteProperty(manifest, own); // of the stored one
  await commitGeneration(repository, manifest, signal);
  repository.store.close();
}

/** All of a disk out of a directory, by nbdcopy from serve against restore: both write a raw file. */
async function frontToBack(rounds: number): Promise<Finding[]> {
  return inFolder(async (folder) => {
    const image = await makeMixedImage(folder);
    const repository = FreshRepository.inFolder(folder);
    await repository.start();
    await whileExported(["-f", "raw", image], ({ uri }) =>
      measure(blockhaul(["backup", uri, "--name", "mixed"], repository.env)),
    );
    const back = join(folder, "back.raw");
    const prepare = (): Promise<void> => rm(back, { force: true });
    const sides = await interleave(rounds, {
      "serve, nbdcopy": {
        prepare,
        run: async () => {
          const served = await startServeProcess(repository.env, ["mixed", "--socket", join(folder, "s")]);
          const copied = await measure({ program: "nbdcopy", args: [served.uri, back] });
          await served.end("SIGTERM");
          return copied;
        },
      },
      restore: { prepare, run: () => measure(blockhaul(["restore", "mixed", "--to", back], repository.env)) },
    });
    return [
      ratioAtMost("nbdcopy from serve / restore, wall", sides["serve, nbdcopy"], sides.restore, COPY_BAR),
    ];
  });
}

/** nbdkit's S3.py, which Debian has not; it needs nbdkit-plugin-python and python3-boto3. */
const S3_PLUGIN = process.env["NBDKIT_S3_PLUGIN"];

function s3PluginArguments(server: S3Server, bucket: string): string[] {
  return [
    S3_PLUGIN!,
    `endpoint-url=${server.endpoint}`,
    `access-key=${server.accessKey}`,
    `secret-key=${server.secretKey}`,
    `bucket=${bucket}`,
    "key=random.raw",
  ];
}

/** 4 KiB reads at random places of 1 GiB of data, 16 in flight; prints how many a second. */
const RANDOM_READER = `
import random, time, nbd
random.seed(1)
places = [random.randrange(h.get_size() // 4096) * 4096 for _ in range(${RANDOM_READS})]
flying = set()
started = time.monotonic()
while places or flying:
    while places and len(flying) < 16:
        flying.add(h.aio_pread(nbd.Buffer(4096), places.pop()))
    h.poll(-1)
    flying = {one for one in flying if not h.aio_command_completed(one)}
print(${RANDOM_READS} / (time.monotonic() - started))
`;

/** Random reads from MinIO, each side cold: ours, and the raw image as an object behind other programs. */
async function hereAndThere(rounds: number): Promise<Finding[]> {
  return inFolder(async (folder) => {
    const image = join(folder, "random.raw");
    const half = 512 * MiB;
    const parts = [
      { kind: "random", length: half },
      { kind: "program", length: half },
    ] as const;
    await makeImage(image, { size: GiB, parts, seed: 4 });
    const reader = join(folder, "reader.py");
    await writeFile(reader, RANDOM_READER);
    const server = await startMinio();
    try {
      const bucket = await server.createBucket("bench");
      await minioClient(server).fPutObject(bucket, "random.raw", image);
      const nothing = (): Promise<void> => Promise.resolve();
      const repository = new FreshRepository(
        server.location(bucket, "repository"),
        folder,
        nothing,
        server.env,
      );
      await repository.start();
      await whileExported(["-f", "raw", image], ({ uri }) =>
        measure(blockhaul(["backup", uri, "--name", "random"], repository.env)),
      );
      // readable by everybody: a signed address is good for GET alone, and the plugin begins with HEAD
      const everybody = { Effect: "Allow", Principal: { AWS: ["*"] }, Action: ["s3:GetObject"] };
      const policy = {
        Version: "2012-10-17",
        Statement: [{ ...everybody, Resource: [`arn:aws:s3:::${bucket}/*`] }],
      };
      await minioClient(server).setBucketPolicy(bucket, JSON.stringify(policy));
      const url = `${server.endpoint}/${bucket}/random.raw`;
      const sides = await interleave<string>(rounds, {
        serve: {
          run: async () => {
            const served = await startServeProcess(repository.env, ["random", "--socket", join(folder, "s")]);
            return await readRandomly(reader, served.uri).finally(() => served.end("SIGTERM"));
          },
        },
        "nbdkit curl": { run: () => throughNbdkit(reader, "curl", `url=${url}`) },
        ...(S3_PLUGIN !== undefined && {
          "nbdkit S3": { run: () => throughNbdkit(reader, "python", ...s3PluginArguments(server, bucket)) },
        }),
        ...(findProgram("fusermount3") !== undefined && {
          "rclone mount": { run: () => throughRclone(reader, folder, server, bucket) },
        }),
      });
      const rclone = sides["rclone mount"];
      const s3 = sides["nbdkit S3"];
      return [
        note("random 4 KiB reads, 16 in flight, of serve", `${rateOf(sides["serve"]!)} a second`),
        note("the same of nbdkit's curl plugin", `${rateOf(sides["nbdkit curl"]!)} a second`),
        s3 === undefined
          ? note("serve / nbdkit's S3 plugin", "NBDKIT_S3_PLUGIN does not say where it is")
          : ratioAtMost("serve / nbdkit's S3 plugin, wall", sides["serve"]!, s3, RANDOM_BAR),
        rclone === undefined
          ? note("serve / rclone mount", "no fusermount3 here")
          : ratioAtMost("serve / rclone mount, wall", sides["serve"]!, rclone, RANDOM_BAR),
        note("image and cache", `${formatSize(GiB)}, ${formatSize(256 * MiB)}`),
      ];
    } finally {
      await server.stop();
    }
  });
}

/** The time of the reads alone, not of Python's start. */
async function readRandomly(reader: string, uri: string): Promise<Measure> {
  const done = await measure({ program: "/usr/bin/python3", args: ["-c", connected(uri, reader)] });
  return { ...done, seconds: RANDOM_READS / Number(done.stdout) };
}

function rateOf(measures: readonly Measure[]): string {
  return (RANDOM_READS / medianOf(measures.map(({ seconds }) => seconds))).toFixed(0);
}

async function throughNbdkit(reader: string, ...plugin: readonly string[]): Promise<Measure> {
  const kit = await startNbdkit(["--readonly", "--threads=16", ...plugin]);
  return await readRandomly(reader, kit.uri).finally(() => kit.stop());
}

/** The object as a file by FUSE, behind nbdkit, so that the same client reads it. */
async function throughRclone(
  reader: string,
  folder: string,
  server: S3Server,
  bucket: string,
): Promise<Measure> {
  const mounted = join(folder, "mounted");
  await mkdir(mounted, { recursive: true });
  const process = await startProcess(
    "rclone",
    ["--config", "", "mount", `remote:${bucket}`, mounted, "--read-only"],
    {
      env: rcloneEnvironment(server),
      log: join(folder, "rclone.log"),
      ready: () => Promise.resolve(spawnSync("mountpoint", ["-q", mounted]).status === 0),
    },
  );
  try {
    return await throughNbdkit(reader, "file", join(mounted, "random.raw"));
  } finally {
    spawnSync("umount", ["--lazy", mounted]);
    await process.stop();
  }
}

function rcloneEnvironment(server: S3Server): NodeJS.ProcessEnv {
  return {
    ...process.env,
    AWS_CA_BUNDLE: "", // rclone refuses to start with one
    RCLONE_CONFIG_REMOTE_TYPE: "s3",
    RCLONE_CONFIG_REMOTE_PROVIDER: "Minio",
    RCLONE_CONFIG_REMOTE_ENDPOINT: server.endpoint,
    RCLONE_CONFIG_REMOTE_ACCESS_KEY_ID: server.accessKey,
    RCLONE_CONFIG_REMOTE_SECRET_ACCESS_KEY: server.secretKey,
    RCLONE_CONFIG_REMOTE_REGION: server.region,
  };
}
