import { join } from "node:path";
import { rm } from "node:fs/promises";
import { GiB, MiB } from "../../src/bytes/size.ts";
import { makeImage } from "../support/images.ts";
import type { NbdProcess } from "../support/nbd-process.ts";
import { startQemuNbd } from "../support/qemu-nbd.ts";
import { blockhaul, measure } from "./harness.ts";

export const MIXED_SIZE = 4 * GiB;

/** 4 GiB: a third random, a third program files, a third holes, in stretches, as disks have them. */
export async function makeMixedImage(folder: string): Promise<string> {
  const path = join(folder, "mixed.raw");
  const stretches = 8;
  const length = Math.floor(MIXED_SIZE / stretches / 3 / MiB) * MiB;
  const kinds = ["random", "program", "hole"] as const;
  const parts = Array.from({ length: stretches }, () => kinds.map((kind) => ({ kind, length }))).flat();
  await makeImage(path, { size: MIXED_SIZE, parts, seed: 2 });
  return path;
}

/** 64 GiB with 1 GiB of data in stretches of 64 MiB. */
export async function makeSparseImage(folder: string): Promise<string> {
  const path = join(folder, "sparse.raw");
  const parts = Array.from({ length: 16 }, () => [
    { kind: "random" as const, length: 64 * MiB },
    { kind: "hole" as const, length: 4 * GiB - 64 * MiB },
  ]).flat();
  await makeImage(path, { size: 64 * GiB, parts, seed: 3 });
  return path;
}

/** Runs `work` while a read-only qemu-nbd exports the image. */
export async function whileExported<T>(
  args: readonly string[],
  work: (server: NbdProcess) => Promise<T>,
): Promise<T> {
  const server = await startQemuNbd(["--read-only", ...args]);
  try {
    return await work(server);
  } finally {
    await server.stop();
  }
}

/** A repository that starts anew in each round, and a cache of its own, as on a machine that saw neither before. */
export class FreshRepository {
  readonly location: string;
  readonly env: Readonly<Record<string, string>>;
  readonly #cache: string;
  readonly #remove: () => Promise<void>;
  readonly #init: readonly string[];

  /** @param remove deletes what is at `location`, if anything. */
  constructor(
    location: string,
    folder: string,
    remove: () => Promise<void>,
    env: Readonly<Record<string, string>> = {},
    init: readonly string[] = [],
  ) {
    this.location = location;
    this.#cache = join(folder, "cache");
    this.#remove = remove;
    this.#init = init;
    this.env = { ...env, BLOCKHAUL_REPOSITORY: location, BLOCKHAUL_CACHE_DIR: this.#cache };
  }

  static inFolder(folder: string): FreshRepository {
    const location = join(folder, "repository");
    return new FreshRepository(location, folder, () => rm(location, { recursive: true, force: true }));
  }

  /** Costs each command the half second that a password takes. */
  static encryptedInFolder(folder: string): FreshRepository {
    const location = join(folder, "encrypted");
    const remove = (): Promise<void> => rm(location, { recursive: true, force: true });
    return new FreshRepository(location, folder, remove, { BLOCKHAUL_PASSWORD: "correct horse" }, [
      "--encrypt",
    ]);
  }

  async start(): Promise<void> {
    await this.#remove();
    await rm(this.#cache, { recursive: true, force: true });
    await measure(blockhaul(["init", ...this.#init], this.env));
  }
}
