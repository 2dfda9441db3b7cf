import { randomBytes } from "node:crypto";
import { GiB, MiB, formatSize } from "../../src/bytes/size.ts";
import { openStore } from "../../src/store/open.ts";
import { startMinio } from "../support/minio.ts";
import { needProgram } from "../support/s3-process.ts";
import { measure, type Measure } from "./harness.ts";

/**
 * s3-upload.ts [PART_MIB] [AT_ONCE]: 1 GiB into MinIO on this machine, as packs of 128 MiB through `PartUpload` and as
 * one object through `rclone rcat`, twice in turn. Rates mean something only as ratios within one run: server and
 * client share the processors.
 */
const TOTAL = GiB;
const PACK = 128 * MiB;
const ROUNDS = 2;
const partSize = Number(process.argv[2] ?? 16) * MiB;
const atOnce = Number(process.argv[3] ?? 4);

const location = process.env["BENCH_LOCATION"];
if (location === undefined) await compare();
else await upload(location);

async function compare(): Promise<void> {
  const server = await startMinio();
  try {
    const bucket = await server.createBucket("bench");
    for (let round = 1; round <= ROUNDS; round++) {
      const ours = {
        program: process.execPath,
        args: [import.meta.filename, ...process.argv.slice(2)],
        env: { ...server.env, BENCH_LOCATION: server.location(bucket, `round-${round}`) },
      };
      const source = { program: "head", args: ["-c", String(TOTAL), "/dev/zero"] };
      const rclone = {
        program: needProgram("rclone"),
        args: ["rcat", `:s3:${bucket}/rclone-${round}`, "--s3-chunk-size", `${partSize / MiB}M`].concat([
          ...["--s3-upload-concurrency", String(atOnce), "--quiet"],
        ]),
        env: {
          AWS_CA_BUNDLE: "", // this rclone fails on it
          RCLONE_CONFIG: "/dev/null",
          RCLONE_S3_PROVIDER: "Minio",
          RCLONE_S3_ENDPOINT: server.endpoint,
          RCLONE_S3_ACCESS_KEY_ID: server.accessKey,
          RCLONE_S3_SECRET_ACCESS_KEY: server.secretKey,
        },
      };
      show("blockhaul", await measure(ours));
      show("rclone rcat", await measure(source, rclone));
    }
  } finally {
    await server.stop();
  }
}

function show(name: string, { seconds, cpuSeconds, peakRssBytes }: Measure): void {
  const rate = (TOTAL / MiB / seconds).toFixed(0);
  const cpu = (cpuSeconds / (TOTAL / GiB)).toFixed(2);
  console.log(
    `${name.padEnd(12)} ${rate.padStart(5)} MiB/s  ${cpu} s CPU/GiB  ${formatSize(peakRssBytes)} peak`,
  );
}

/** What the measured process does. */
async function upload(to: string): Promise<void> {
  const store = await openStore(to);
  const { signal } = new AbortController();
  const buffers = Array.from({ length: atOnce }, () => randomBytes(partSize));
  for (let pack = 0; pack < TOTAL / PACK; pack++) {
    const object = await store.beginUpload(`packs/${pack}`, signal);
    let next = 0;
    await Promise.all(
      buffers.map(async (buffer) => {
        while (next < PACK / partSize) await object.part(next++, buffer, signal);
      }),
    );
    await object.complete(signal);
  }
  store.close();
}
