/**
 * How fast the NBD client reads, and what CPU it takes, against nbdcopy on the same export in the same run.
 *
 *     npx node test/bench/nbd-read.ts [MiB] [connections]
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { open, rm, mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { formatSize, KiB, MiB } from "../../src/bytes/size.ts";
import { openNbdSource } from "../../src/nbd/source.ts";
import { parseNbdUri } from "../../src/nbd/uri.ts";
import type { NbdProcess } from "../support/nbd-process.ts";
import { startNbdkit } from "../support/nbdkit.ts";
import { startQemuNbd } from "../support/qemu-nbd.ts";

const SIZE = Number(process.argv[2] ?? 1024) * MiB;
const CONNECTIONS = (process.argv[3] ?? "1,4").split(",").map(Number);
const { signal } = new AbortController();

interface Figures {
  readonly seconds: number;
  readonly cpuSeconds: number;
}

/** Reads the whole export into `inFlight` buffers, over and over. */
async function readAll(
  server: NbdProcess,
  length: number,
  inFlight: number,
  connections: number,
): Promise<Figures> {
  const source = await openNbdSource(parseNbdUri(server.uri), { connections }, signal);
  const [started, cpu] = [performance.now(), process.cpuUsage()];
  let next = 0;
  await Promise.all(
    Array.from({ length: inFlight }, async () => {
      const into = Buffer.from(new SharedArrayBuffer(length));
      while (next < source.size) {
        const offset = next;
        next += length;
        await source.read(offset, into.subarray(0, Math.min(length, source.size - offset)), signal);
      }
    }),
  );
  const used = process.cpuUsage(cpu);
  const figures = {
    seconds: (performance.now() - started) / 1000,
    cpuSeconds: (used.user + used.system) / 1e6,
  };
  await source.close();
  return figures;
}

/** nbdcopy with as many requests of this size in flight. CPU by the shell's `times`. */
async function nbdcopy(server: NbdProcess, length: number, inFlight: number): Promise<Figures> {
  const command = `nbdcopy --connections=1 --requests=${inFlight} --request-size=${length} '${server.uri}' null:; times`;
  const started = performance.now();
  const child = spawn("bash", ["-c", command], { stdio: ["ignore", "pipe", "inherit"] });
  let out = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => (out += text));
  await once(child, "close");
  const minutes = [...(out.split("\n")[1] ?? "").matchAll(/(\d+)m([\d.]+)s/g)];
  const cpuSeconds = minutes.reduce((sum, [, m, s]) => sum + 60 * Number(m) + Number(s), 0);
  return { seconds: (performance.now() - started) / 1000, cpuSeconds };
}

function report(what: string, { seconds, cpuSeconds }: Figures): void {
  const gigabytes = SIZE / 1e9;
  const [rate, cpu] = [(gigabytes / seconds).toFixed(2), (cpuSeconds / gigabytes).toFixed(3)];
  console.log(`${what.padEnd(58)} ${rate} GB/s   ${cpu} CPU s/GB`);
}

async function compare(name: string, server: NbdProcess): Promise<void> {
  for (const [length, inFlight] of [
    [256 * KiB, 16],
    [MiB, 16],
    [64 * KiB, 32],
  ] as const) {
    const what = `${name}, ${inFlight} × ${formatSize(length)}`;
    report(`${what}, nbdcopy`, await nbdcopy(server, length, inFlight));
    for (const connections of CONNECTIONS) {
      report(
        `${what}, blockhaul, ${connections} conn.`,
        await readAll(server, length, inFlight, connections),
      );
    }
  }
  await server.stop();
}

const folder = await mkdtemp(join(tmpdir(), "nbd-read-"));
const image = join(folder, "disk.raw");
const file = await open(image, "w");
const block = Buffer.alloc(MiB, 0x5a);
for (let at = 0; at < SIZE; at += MiB) await file.write(block, 0, MiB, at);
await file.close();
await compare("nbdkit memory-backed file", await startNbdkit(["file", image]));
await compare("qemu-nbd raw", await startQemuNbd(["--read-only", "-f", "raw", image]));
await rm(folder, { recursive: true });
