import { execFile } from "node:child_process";
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect } from "vitest";
import { ImageSource, type WantedImage } from "../../src/backup/images.ts";
import { QemuSource } from "../../src/backup/qemu-vm.ts";
import type { BackupRequest } from "../../src/backup/request.ts";
import { runBackup } from "../../src/backup/run.ts";
import type { ChunkWorkers } from "../../src/chunk/workers.ts";
import { imageFormat } from "../../src/image/formats.ts";
import { inspectImage } from "../../src/image/inspect.ts";
import { generationBitmap } from "../../src/qemu/names.ts";
import type { QemuSourceOptions } from "../../src/qemu/point-in-time.ts";
import type { Manifest } from "../../src/repository/manifest.ts";
import { HookedStore, type StoreHooks } from "./hooked-store.ts";
import { Backups } from "./backups.ts";
import { qemuImg } from "./exported-images.ts";
import { temporaryFolder } from "./folder.ts";
import { memoryRepository, TEST_REPOSITORY } from "./memory-repository.ts";

const never = new AbortController().signal;

export interface ImageOptions {
  readonly source?: string;
  readonly full?: boolean;
  readonly leave?: boolean;
  readonly format?: string;
  readonly hooks?: StoreHooks;
  /** When the plan is made, before anything else is done. */
  readonly afterPlan?: () => Promise<void>;
}

/** A path, as a user gives a single image; or paths by the disk's name. */
export type Images = string | Readonly<Record<string, string>>;

/** Backups of images into a repository in memory with chunks of 64 KiB. */
export class ImageBackups {
  readonly backups: Backups;
  readonly warnings: string[] = [];

  private constructor(backups: Backups) {
    this.backups = backups;
  }

  /** @param workers of any repository in memory. */
  static async start(workers: ChunkWorkers): Promise<ImageBackups> {
    return new ImageBackups(await Backups.start(memoryRepository(), workers));
  }

  request(images: Images, options: ImageOptions = {}): BackupRequest {
    const { hooks = {}, source = "web", full = false, leave = false } = options;
    const wish = {
      source,
      repository: TEST_REPOSITORY,
      full,
      leave,
      images: wanted(images, options.format),
      connections: undefined,
      warn: (message: string): void => void this.warnings.push(message),
    };
    return {
      ...this.#request(source, hooks),
      connect: async (_run, _purpose, signal) => {
        const images = await ImageSource.connect(wish, signal);
        const plan = images.plan.bind(images);
        images.plan = async (earlier) => {
          const planned = await plan(earlier);
          await options.afterPlan?.();
          return planned;
        };
        return images;
      },
    };
  }

  /** One backup. @returns what became of it. */
  async backup(images: Images, options: ImageOptions = {}): Promise<Manifest> {
    const { manifest } = await runBackup(this.request(images, options), new AbortController());
    return manifest;
  }

  /** Of the same source while a VM runs on it. */
  async backupVm(options: QemuSourceOptions, source = "web"): Promise<Manifest> {
    const wish = { ...options, source, repository: TEST_REPOSITORY, full: false, connections: undefined };
    const request: BackupRequest = {
      ...this.#request(source, {}),
      connect: (run, purpose, signal) => QemuSource.connect(wish, run, purpose, signal),
    };
    return (await runBackup(request, new AbortController())).manifest;
  }

  /** Fails unless the disk of the generation is, byte for byte, what QEMU says is in the image now. */
  async expectHolds({ disks }: Manifest, image: string, name = disks[0]!.name): Promise<void> {
    const disk = disks.find((one) => one.name === name)!;
    const truth = await contentOf(image);
    const restored = await this.backups.restore(disk);
    expect(restored.equals(truth), `${name} of ${image}`).toBe(true);
  }

  #request(source: string, hooks: StoreHooks): BackupRequest {
    const store = new HookedStore(this.backups.repository.store, hooks);
    const request = this.backups.request([], { source, store });
    return { ...request, warn: (message) => void this.warnings.push(message) };
  }
}

function wanted(images: Images, format: string | undefined): WantedImage[] {
  const named = typeof images === "string" ? [[undefined, images] as const] : Object.entries(images);
  return named.map(([disk, path]) => ({
    disk,
    fallback: disk ?? "disk",
    path,
    format: imageFormat(path, format),
  }));
}

/** What QEMU reads in an image. */
export async function contentOf(image: string): Promise<Buffer> {
  const raw = join(await temporaryFolder(), "content.raw");
  await qemuImg("convert", "-f", imageFormat(image, undefined), "-O", "raw", image, raw);
  try {
    return await readFile(raw);
  } finally {
    await rm(raw);
  }
}

export async function bitmapsIn(image: string): Promise<string[]> {
  const { bitmaps } = await inspectImage(image, "qcow2", never);
  return bitmaps.map(({ name }) => name).sort();
}

export function bitmapOf({ generation, disks }: Manifest, disk = disks[0]!.name): string {
  return generationBitmap(TEST_REPOSITORY, generation, disk);
}

/** The pid of the qemu-nbd that serves an image; undefined: none does. */
export async function serverOf(image: string): Promise<number | undefined> {
  const { stdout } = await promisify(execFile)("ps", ["-eo", "pid=,args="]);
  const line = stdout.split("\n").find((one) => /^ *\d+ qemu-nbd/.test(one) && one.endsWith(` ${image}`));
  return line === undefined ? undefined : Number.parseInt(line, 10);
}
