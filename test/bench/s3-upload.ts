import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { GiB, MiB, formatSize } from "../../src/bytes/size.ts";
import { openStore } from "../../src/store/open.ts";
import { startMinio } from "../support/minio.ts";
import { needProgram, type S3Server } from "../support/s3-process.ts";

/**
 * s3-upload.ts [PART_MIB] [AT_ONCE]: 1 GiB into MinIO on this machine, as packs of 128 MiB through `PartUpload` and as
 * one object through `rclone rcat`, twice in turn. Rates mean something only as ratios within one run: server and
 * client share the processors. Each side runs as a process of its own, so that its CPU and memory are its own.
 */
const TOTAL = GiB;
const PACK = 128 * MiB;
const partSize = Number(process.argv[2] ?? 16) * MiB;
const atOnce = Number(process.argv[3] ?? 4);

interface Figures {
  readonly seconds: number;
  readonly cpuSeconds: number;
  readonly rssPeak: number;
}

if (process.env["BENCH_LOCATION"] === undefined) await compare();
else await upload(process.env["BENCH_LOCATION"]);

async function compare(): Promise<void> {
  const server = await startMinio();
  try {
    const bucket = await server.createBucket("bench");
    for (let round = 1; round <= 2; round++) {
      show("blockhaul", await runOurs(server, server.location(bucket, `round-${round}`)));
      show("rclone rcat", await runRclone(server, `${bucket}/rclone-${round}`));
    }
  } finally {
    await server.stop();
  }
}

function show(name: string, { seconds, cpuSeconds, rssPeak }: Figures): void {
  const rate = (TOTAL / MiB / seconds).toFixed(0);
  const cpu = (cpuSeconds / (TOTAL / GiB)).toFixed(2);
  console.log(`${name.padEnd(12)} ${rate.padStart(5)} MiB/s  ${cpu} s CPU/GiB  ${formatSize(rssPeak)} peak`);
}

/** What the uploading process itself does: prints its figures as JSON. */
async function upload(location: string): Promise<void> {
  const store = openStore(location);
  const { signal } = new AbortController();
  const buffers = Array.from({ length: atOnce }, () => randomBytes(partSize));
  const [started, cpu] = [performance.now(), process.cpuUsage()];
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
  const used = process.cpuUsage(cpu);
  store.close();
  const figures: Figures = {
    seconds: (performance.now() - started) / 1000,
    cpuSeconds: (used.user + used.system) / 1e6,
    rssPeak: process.resourceUsage().maxRSS * 1024,
  };
  console.log(JSON.stringify(figures));
}

async function runOurs(server: S3Server, location: string): Promise<Figures> {
  const child = spawn(process.execPath, [import.meta.filename, ...process.argv.slice(2)], {
    env: { ...process.env, ...server.env, BENCH_LOCATION: location },
    stdio: ["ignore", "pipe", "inherit"],
  });
  const output = await child.stdout.setEncoding("utf8").toArray();
  return JSON.parse(output.join("")) as Figures;
}

async function runRclone(server: S3Server, target: string): Promise<Figures> {
  const started = performance.now();
  const child = spawn(
    needProgram("rclone"),
    [
      "rcat",
      `:s3:${target}`,
      "--s3-chunk-size",
      `${partSize / MiB}M`,
      "--s3-upload-concurrency",
      String(atOnce),
    ],
    {
      env: {
        ...process.env,
        AWS_CA_BUNDLE: undefined, // this rclone fails on it
        RCLONE_CONFIG: "/dev/null",
        RCLONE_S3_PROVIDER: "Minio",
        RCLONE_S3_ENDPOINT: server.endpoint,
        RCLONE_S3_ACCESS_KEY_ID: server.accessKey,
        RCLONE_S3_SECRET_ACCESS_KEY: server.secretKey,
      },
      stdio: ["pipe", "inherit", "inherit"],
    },
  );
  const exited = once(child, "exit");
  const piece = randomBytes(MiB);
  for (let sent = 0; sent < TOTAL; sent += piece.length) {
    if (!child.stdin.write(piece)) await once(child.stdin, "drain");
  }
  const rssPeak = Number(/VmHWM:\s+(\d+) kB/.exec(status(child.pid!))?.[1] ?? 0) * 1024;
  child.stdin.end();
  const cpuSeconds = await cpuUntilExit(child.pid!, exited);
  return { seconds: (performance.now() - started) / 1000, cpuSeconds, rssPeak };
}

/** The kernel tells a process's CPU time only while it is there. */
async function cpuUntilExit(pid: number, exited: Promise<unknown>): Promise<number> {
  let ticks = 0;
  let running = true;
  void exited.then(() => (running = false));
  while (running) {
    try {
      const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]!.split(" ");
      ticks = Number(fields[11]) + Number(fields[12]);
    } catch {
      break;
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  await exited;
  return ticks / 100;
}

function status(pid: number): string {
  return readFileSync(`/proc/${pid}/status`, "utf8");
}
