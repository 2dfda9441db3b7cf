import { execFile } from "node:child_process";
import { copyFile } from "node:fs/promises";
import { promisify } from "node:util";
import { onTestFinished } from "vitest";
import type { NbdProcess, NbdProcessOptions } from "./nbd-process.ts";
import { startNbdkit } from "./nbdkit.ts";
import { startQemuNbd } from "./qemu-nbd.ts";
import type { TestRepository } from "./repositories.ts";

const run = promisify(execFile);

/** The fields of a generation's document that tests look at. */
export interface GenerationJson {
  readonly generation: string;
  readonly source: string;
  readonly kind: "full" | "incremental" | "rescan";
  readonly reason: string;
  readonly parent: string | null;
  readonly sequence: number;
  readonly createdAt: string;
  readonly tags: Readonly<Record<string, string>>;
  readonly disks: readonly { readonly name: string; readonly size: number; readonly layers: number }[];
  readonly stats: StatsJson;
}

export interface StatsJson {
  readonly bytesRead: number;
  readonly chunksRead: number;
  readonly bytesZero: number;
  readonly chunksZero: number;
  readonly bytesUnchanged: number;
  readonly chunksUnchanged: number;
  readonly bytesDeduplicated: number;
  readonly chunksDeduplicated: number;
  readonly bytesStored: number;
  readonly bytesPacked: number;
  readonly chunksStored: number;
  readonly seconds: number;
  readonly metadataBytes: number;
  readonly requests: Readonly<Record<string, number>>;
  readonly peakRssBytes: number;
}

/** A read-only export called "web" that is ended with the test. */
export async function qemuNbd(...args: string[]): Promise<NbdProcess> {
  const server = await startQemuNbd(["--read-only", ...args], { exportName: "web" });
  onTestFinished(() => server.stop());
  return server;
}

/** As `startNbdkit`, ended with the test. */
export async function nbdkit(args: readonly string[], options: NbdProcessOptions = {}): Promise<NbdProcess> {
  const server = await startNbdkit(args, options);
  onTestFinished(() => server.stop());
  return server;
}

/** Backs up a raw image as "web" through qemu-nbd. Its size must be whole sectors: qemu-nbd exports no others. */
export async function backUpRaw(
  repository: TestRepository,
  image: string,
  ...flags: string[]
): Promise<GenerationJson> {
  const server = await qemuNbd("--format=raw", image);
  return await repository.json<GenerationJson>("backup", server.uri, ...flags).finally(() => server.stop());
}

/** Backs up a file of any size as "web" through nbdkit. */
export async function backUpFile(
  repository: TestRepository,
  file: string,
  ...flags: string[]
): Promise<GenerationJson> {
  const server = await nbdkit(["--readonly", "file", file]);
  const flagsAll = ["--name", "web", ...flags];
  return await repository
    .json<GenerationJson>("backup", server.uri, ...flagsAll)
    .finally(() => server.stop());
}

/** Backs up a qcow2 image as "web", with its persistent bitmap when one is named. */
export async function backUpQcow2(
  repository: TestRepository,
  image: string,
  bitmap?: { readonly name: string; readonly parent: string },
): Promise<GenerationJson> {
  const server = await qemuNbd(
    "--format=qcow2",
    ...(bitmap === undefined ? [] : [`--bitmap=${bitmap.name}`]),
    image,
  );
  const flags = bitmap === undefined ? [] : ["--bitmap", bitmap.name, "--parent", bitmap.parent];
  return await repository.json<GenerationJson>("backup", server.uri, ...flags).finally(() => server.stop());
}

/** A new, empty qcow2 image. */
export async function createQcow2(image: string, bytes: number): Promise<void> {
  await qemuImg("create", "-q", "-f", "qcow2", image, `${bytes}`);
}

export async function qemuImg(...args: string[]): Promise<string> {
  return (await run("qemu-img", args)).stdout;
}

/** Each command is one of qemu-io's: "write -P 1 0 8M", "write -z 1M 64k", "discard 2M 1M". */
export async function qemuIo(format: "raw" | "qcow2", image: string, ...commands: string[]): Promise<void> {
  const { stdout } = await run("qemu-io", ["-f", format, ...commands.flatMap((one) => ["-c", one]), image]);
  if (/failed|error|invalid/i.test(stdout)) throw new Error(`qemu-io ${image}: ${stdout}`); // it exits with 0
}

/** What an image holds now, as a raw file: what a restore must give. */
export async function keepTruth(format: "raw" | "qcow2", image: string, truth: string): Promise<void> {
  // a raw file of an odd size would be rounded up to a sector
  if (format === "raw") await copyFile(image, truth);
  else await qemuImg("convert", "-f", "qcow2", "-O", "raw", image, truth);
}
