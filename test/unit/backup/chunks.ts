import { hash } from "node:crypto";
import { afterAll, expect } from "vitest";
import type { ChunkWorkers } from "../../../src/chunk/workers.ts";
import { Backups, startWorkers } from "../../support/backups.ts";
import { memoryRepository } from "../../support/memory-repository.ts";
import type { MemoryStore } from "../../support/memory-store.ts";
import { noise } from "../../support/random-disk.ts";
import { ScriptedDisk, type ScriptedDiskOptions } from "../../support/scripted-disk.ts";

/** Chunk size of the test repositories, bytes. */
export const CHUNK = 64 * 1024;

let workers: Promise<ChunkWorkers> | undefined;
afterAll(async () => (await workers)?.close());

/** A disk of whole chunks: 0 is a chunk of zeros, any other number noise of its own. */
export function chunksOf(...contents: readonly number[]): Buffer {
  return Buffer.concat(contents.map((seed) => (seed === 0 ? Buffer.alloc(CHUNK) : noise(seed, CHUNK))));
}

/** The numbers from `from` to `to` - 1. */
export function numbers(from: number, to: number): number[] {
  return Array.from({ length: to - from }, (_, index) => from + index);
}

export function diskOf(contents: readonly number[], options: ScriptedDiskOptions = {}): ScriptedDisk {
  return new ScriptedDisk("vda", chunksOf(...contents), options);
}

/** The same disk, of which a dirty bitmap says that nothing changed. */
export function unchangedDisk(contents: readonly number[]): ScriptedDisk {
  return diskOf(contents, {
    extents: [{ offset: 0, length: contents.length * CHUNK, state: "unchanged" }],
  });
}

/** The id of a chunk of `chunksOf`, in a plain repository. */
export function idOf(content: number): Buffer {
  return hash("sha256", chunksOf(content), "buffer");
}

/** A repository in memory whose packs hold few chunks; threads are shared by the tests of a file. */
export async function newBackups(
  options: { readonly packChunks?: number; readonly store?: MemoryStore; readonly encrypted?: boolean } = {},
): Promise<Backups & { readonly store: MemoryStore }> {
  const packSize = (options.packChunks ?? 16) * CHUNK;
  const repository = memoryRepository({
    packSize,
    partSize: CHUNK,
    encrypted: options.encrypted ?? false,
    ...(options.store && { store: options.store }),
  });
  if (options.encrypted !== true) workers ??= startWorkers(repository);
  const shared = options.encrypted === true ? undefined : await workers; // those of others have other keys
  const backups = await Backups.start(repository, shared);
  return Object.assign(backups, { store: repository.store });
}

/** As `toEqual`, which takes minutes to describe how two disks differ. */
export function expectSame(actual: Buffer, expected: Buffer): void {
  const chunk = actual.equals(expected)
    ? undefined
    : actual.findIndex((byte, index) => byte !== expected[index]) / CHUNK;
  expect(chunk, "the first chunk that differs").toBeUndefined();
  expect(actual.length).toBe(expected.length);
}
