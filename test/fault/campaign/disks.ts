import { hash } from "node:crypto";
import { open, readFile, truncate, writeFile } from "node:fs/promises";
import { MiB } from "../../../src/bytes/size.ts";
import type { NbdProcess } from "../../support/nbd-process.ts";
import { startQemuNbd } from "../../support/qemu-nbd.ts";
import { noise } from "../../support/random-disk.ts";

type Random = (below: number) => number;

const SECTOR = 512;
const SIZE_MIN = 4 * MiB;
const SIZE_MAX = 14 * MiB;

/** What a disk held at some moment. */
export interface Picture {
  readonly size: number;
  /** SHA-256. */
  readonly digest: string;
}

/** A raw image behind a real, read-only NBD server. It changes only when it is told to. */
export class CampaignDisk {
  readonly name: string;
  readonly #path: string;
  readonly #random: Random;
  #server: NbdProcess;

  private constructor(name: string, path: string, random: Random, server: NbdProcess) {
    this.name = name;
    this.#path = path;
    this.#random = random;
    this.#server = server;
  }

  static async make(name: string, path: string, random: Random): Promise<CampaignDisk> {
    await writeFile(path, "");
    await truncate(path, randomSize(random));
    const disk = new CampaignDisk(name, path, random, await serve(name, path));
    await disk.change(8);
    return disk;
  }

  /** Where its server listens. */
  get socket(): string {
    return this.#server.socket;
  }

  /** Some writes: new bytes, old ones, zeros, holes, text. */
  async change(writes: number): Promise<void> {
    const random = this.#random;
    const file = await open(this.#path, "r+");
    try {
      const { size } = await file.stat();
      for (let write = 0; write < writes; write++) {
        const offset = Math.floor(random(size) / SECTOR) * SECTOR;
        const length = Math.min(size - offset, random(3) === 0 ? SECTOR * (1 + random(64)) : random(2 * MiB));
        const kind = random(4);
        const seed = random(2) === 0 ? random(6) : random(1_000_000); // some content comes again and again
        const bytes = kind === 0 ? Buffer.alloc(length) : noise(seed, length);
        if (kind === 1) bytes.fill(`line ${seed}\n`);
        await file.write(bytes, 0, length, offset);
      }
    } finally {
      await file.close();
    }
  }

  async resize(): Promise<void> {
    await this.#server.stop();
    await truncate(this.#path, randomSize(this.#random));
    this.#server = await serve(this.name, this.#path);
  }

  async picture(): Promise<Picture> {
    const bytes = await readFile(this.#path);
    return { size: bytes.length, digest: hash("sha256", bytes) };
  }

  async stop(): Promise<void> {
    await this.#server.stop();
  }
}

async function serve(name: string, path: string): Promise<NbdProcess> {
  return await startQemuNbd(["--read-only", "--format=raw", path], { exportName: name });
}

function randomSize(random: Random): number {
  return Math.floor((SIZE_MIN + random(SIZE_MAX - SIZE_MIN)) / SECTOR) * SECTOR;
}
