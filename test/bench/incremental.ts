import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, readdir, stat, writeFile } from "node:fs/promises";
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { formatSize, GiB, KiB, MiB, TiB } from "../../src/bytes/size.ts";
import { makeImage } from "../support/images.ts";
import { runProgram } from "../support/s3-process.ts";
import { FreshRepository, whileExported } from "./disks.ts";
import {
  atMost,
  type BackupDocument,
  blockhaul,
  type Command,
  documentOf,
  type Finding,
  inFolder,
  measure,
  type Measure,
  note,
} from "./harness.ts";

const kB = 1000;
const showBytes = (bytes: number): string => `${(bytes / kB).toFixed(1)} kB`;
const showSeconds = (seconds: number): string => `${seconds.toFixed(2)} s`;

/** Backs up into a directory, whose growth is what a bucket would have been sent. */
async function backUp(
  repository: FreshRepository,
  args: readonly string[],
): Promise<{ measured: Measure; document: BackupDocument; uploaded: number }> {
  const before = await bytesIn(repository.location);
  const measured = await measure(blockhaul(["backup", ...args, "--json"], repository.env));
  return {
    measured,
    document: documentOf(measured),
    uploaded: (await bytesIn(repository.location)) - before,
  };
}

async function bytesIn(folder: string): Promise<number> {
  let bytes = 0;
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    if (entry.isFile()) bytes += (await stat(join(entry.parentPath, entry.name))).size;
  }
  return bytes;
}

/** A second look at a disk that did not change. */
export async function unchangedRescan(): Promise<Finding[]> {
  return inFolder(async (folder) => {
    const image = join(folder, "disk.raw");
    const parts = [
      { kind: "program", length: 512 * MiB },
      { kind: "random", length: 512 * MiB },
    ] as const;
    await makeImage(image, { size: 2 * GiB, parts, seed: 4 });
    const repository = FreshRepository.inFolder(folder);
    await repository.start();
    return whileExported(["-f", "raw", image], async ({ uri }) => {
      await backUp(repository, [uri, "--name", "disk"]);
      const { document, uploaded, measured } = await backUp(repository, [uri, "--name", "disk"]);
      if (document.kind !== "rescan") throw new Error(`expected a rescan, got a ${document.kind}`);
      return [
        atMost("uploaded by a rescan of an unchanged disk", uploaded, 100 * kB, showBytes),
        note("read by it, in", `${formatSize(document.stats.bytesRead)}, ${showSeconds(measured.seconds)}`),
      ];
    });
  });
}

const DIRTY_EXTENTS = 1000;
const EXTENT = 64 * KiB;
const CHUNK = 256 * KiB;
/** From one extent to the next: whole chunks. */
const STRIDE = Math.floor(TiB / DIRTY_EXTENTS / CHUNK) * CHUNK;

/** 1,000 dirty extents of 64 KiB all over a disk of 1 TiB. */
export async function incremental(): Promise<Finding[]> {
  return inFolder(async (folder) => {
    const image = join(folder, "disk.qcow2");
    runProgram("qemu-img", ["create", "-q", "-f", "qcow2", image, String(TiB)]);
    await scatter(folder, image, 16 * MiB);
    runProgram("qemu-img", ["bitmap", "--add", "-g", String(EXTENT), image, "b0"]);
    const repository = FreshRepository.inFolder(folder);
    await repository.start();
    await whileExported(["-f", "qcow2", image], ({ uri }) => backUp(repository, [uri, "--name", "disk"]));
    await scatter(folder, image, 0);
    runProgram("qemu-img", ["bitmap", "--disable", image, "b0"]); // else qemu-nbd will not export it read-only
    return whileExported(["-f", "qcow2", "-B", "b0", image], async ({ uri }) => {
      const args = [uri, "--name", "disk", "--bitmap", "b0", "--parent", "disk@latest"];
      const { document, measured, uploaded } = await backUp(repository, args);
      if (document.kind !== "incremental") throw new Error(`expected an incremental, got a ${document.kind}`);
      const { stats } = document;
      const what = "incremental, 1,000 dirty 64 KiB in 1 TiB";
      const reading = await measure(readChunks(uri));
      return [
        atMost(`${what}: bytes read`, stats.bytesRead, DIRTY_EXTENTS * CHUNK, formatSize),
        atMost("its wall time beyond reading (qemu-io)", measured.seconds - reading.seconds, 5, showSeconds),
        note("its wall time; qemu-io's", `${showSeconds(measured.seconds)}; ${showSeconds(reading.seconds)}`),
        atMost(
          "its metadata: all that was written but blobs",
          uploaded - stats.bytesPacked,
          200 * kB,
          showBytes,
        ),
        note("its peak RSS", formatSize(measured.peakRssBytes)),
      ];
    });
  });
}

/** Writes random bytes to 1,000 extents, each in a chunk of its own, shifted by `shift` bytes. */
async function scatter(folder: string, image: string, shift: number): Promise<void> {
  const data = join(folder, "data");
  await mkdir(data, { recursive: true });
  const commands: string[] = [];
  for (let extent = 0; extent < DIRTY_EXTENTS; extent++) {
    const file = join(data, String(extent));
    await writeFile(file, randomBytes(EXTENT));
    commands.push(`write -q -s ${file} ${extent * STRIDE + shift} ${EXTENT}`);
  }
  const child = spawn("qemu-io", ["-f", "qcow2", image], { stdio: ["pipe", "ignore", "inherit"] });
  child.stdin.end(`${commands.join("\n")}\n`);
  const [code] = (await once(child, "close")) as [number | null];
  if (code !== 0) throw new Error(`qemu-io ended with ${code}`);
}

/** The reading alone, one chunk after the other. */
function readChunks(uri: string): Command {
  const reads = Array.from({ length: DIRTY_EXTENTS }, (_, extent) => [
    "-c",
    `read -q ${extent * STRIDE} ${CHUNK}`,
  ]);
  return { program: "qemu-io", args: ["-r", "-f", "raw", ...reads.flat(), uri] };
}
