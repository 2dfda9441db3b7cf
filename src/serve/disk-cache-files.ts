import { opendir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { systemCode } from "../errors.ts";

/** Files take whole pages of a file system, bytes. */
export const PAGE = 4096;

/** A file that is still being written has a dot in front; one this old was left by a process that died, in milliseconds. */
const LEFTOVER_MS = 3_600_000;

/** How a cache calls its folders and files: by the id of a chunk and the checksum of its blob, in hexadecimal. */
const FOLDER = /^[0-9a-f]{2}$/;
const FILE = /^[0-9a-f]{64}-[0-9a-f]{8}$/;
const TEMPORARY = /^\.[0-9a-f-]{36}$/;

export interface CachedFile {
  readonly path: string;
  /** In whole pages. */
  readonly bytes: number;
  /** When it was used last, by this machine's clock. */
  readonly usedMs: number;
}

/** The files of a cache, in any order; leftovers of processes that died are removed, what is not the cache's is passed over. */
export async function* cachedFiles(root: string, nowMs: number): AsyncGenerator<CachedFile, void> {
  for await (const folder of entriesOf(root)) {
    if (!FOLDER.test(folder)) continue;
    for await (const name of entriesOf(join(root, folder))) {
      const path = join(root, folder, name);
      const isTemporary = TEMPORARY.test(name);
      if (!isTemporary && !FILE.test(name)) continue;
      const found = await unlessAbsent(stat(path));
      if (found === undefined) continue;
      if (!isTemporary) yield { path, bytes: Math.ceil(found.size / PAGE) * PAGE, usedMs: found.mtimeMs };
      else if (nowMs - found.mtimeMs > LEFTOVER_MS) await rm(path, { force: true });
    }
  }
}

async function* entriesOf(folder: string): AsyncGenerator<string, void> {
  const found = await unlessAbsent(opendir(folder));
  if (found !== undefined) for await (const { name } of found) yield name;
}

/** Undefined when it is not there: other processes delete too. */
async function unlessAbsent<T>(work: Promise<T>): Promise<T | undefined> {
  try {
    return await work;
  } catch (error) {
    if (systemCode(error) === "ENOENT" || systemCode(error) === "ENOTDIR") return undefined;
    throw error;
  }
}

/** Classes of ages are so narrow: a thirty-second more and it is the next. */
const CLASSES_PER_E = 32;

/** How many bytes are how old, in little memory: ages are told apart by three percent. */
export class AgeHistogram {
  readonly #classes: number[] = [];
  #bytes = 0;

  get bytes(): number {
    return this.#bytes;
  }

  /** @param ageMs of less than 0, when a clock went back, counts as 0. */
  add(ageMs: number, bytes: number): void {
    const own = classOf(ageMs);
    this.#classes[own] = (this.#classes[own] ?? 0) + bytes;
    this.#bytes += bytes;
  }

  /** Whether an age is among those of the oldest `bytes`, and of all that are about as old as the youngest of them. */
  oldest(bytes: number): (ageMs: number) => boolean {
    let left = bytes;
    let from = this.#classes.length;
    while (left > 0 && from > 0) left -= this.#classes[--from] ?? 0;
    return (ageMs) => classOf(ageMs) >= from;
  }
}

function classOf(ageMs: number): number {
  return Math.floor(CLASSES_PER_E * Math.log1p(Math.max(0, ageMs) / 1000));
}
