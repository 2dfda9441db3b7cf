import { spawn } from "node:child_process";
import { createCipheriv, createHash, hash } from "node:crypto";
import { once } from "node:events";
import { type FileHandle, open, readdir, realpath, stat } from "node:fs/promises";
import { join } from "node:path";
import { MiB } from "../../src/bytes/size.ts";

/**
 * - `random`  no two blocks alike, nothing to compress
 * - `program` the machine's own programs and libraries, in an order that does not change
 * - `text`    log-like lines; compresses well, no two chunks alike
 * - `hole`    nothing there: reads as zeros, takes no space
 */
export type PartKind = "random" | "program" | "text" | "hole";

export interface ImagePart {
  readonly kind: PartKind;
  /** Bytes. */
  readonly length: number;
}

export interface ImagePlan {
  /** Bytes; what the parts leave over is a hole. */
  readonly size: number;
  /** One after the other, from the start. */
  readonly parts: readonly ImagePart[];
  /** The same seed makes the same image (on the same machine, where there are program parts). */
  readonly seed: number;
}

/** A change to an image: bytes, or so many random ones. */
export type ImageChange =
  | { readonly offset: number; readonly bytes: Uint8Array }
  | { readonly offset: number; readonly length: number; readonly seed: number };

const STEP = MiB;
const PROGRAM_FOLDERS = ["/usr/lib", "/usr/bin"];
const WORDS =
  "accepted closed connection disk for from generation guest in queue read session timeout to user write".split(
    " ",
  );

/** Writes a raw, sparse image. @throws Error when the parts are longer than the image. */
export async function makeImage(path: string, { size, parts, seed }: ImagePlan): Promise<void> {
  const file = await open(path, "w");
  // Parts of one kind go on where the last one ended: a second part that begins anew would be its duplicate.
  const supplies = {
    random: new Supply(randomBlocks(`${seed}`)),
    program: new Supply(programBlocks(`${seed}`)),
    text: new Supply(textBlocks(`${seed}`)),
  };
  try {
    let at = 0;
    for (const { kind, length } of parts) {
      if (at + length > size) throw new Error(`the parts of ${path} are longer than ${size} bytes`);
      if (kind !== "hole") await supplies[kind].write(file, at, length);
      at += length;
    }
    await file.truncate(size);
  } finally {
    for (const supply of Object.values(supplies)) await supply.close();
    await file.close();
  }
}

/** Overwrites parts of an image in place. */
export async function patchImage(path: string, changes: readonly ImageChange[]): Promise<void> {
  const file = await open(path, "r+");
  try {
    for (const change of changes) {
      if ("bytes" in change) await file.write(change.bytes, 0, change.bytes.length, change.offset);
      else {
        const supply = new Supply(randomBlocks(`${change.seed} ${change.offset}`));
        await supply.write(file, change.offset, change.length);
      }
    }
  } finally {
    await file.close();
  }
}

/** SHA-256 of a whole file, in hexadecimal. */
export async function sha256OfFile(path: string): Promise<string> {
  const digest = createHash("sha256");
  const file = await open(path);
  try {
    const buffer = Buffer.allocUnsafe(STEP);
    for (;;) {
      const { bytesRead } = await file.read(buffer, 0, STEP, null);
      if (bytesRead === 0) return digest.digest("hex");
      digest.update(buffer.subarray(0, bytesRead));
    }
  } finally {
    await file.close();
  }
}

/**
 * Compares two files byte by byte, without reading where both have holes: by qemu-img, which has no code of ours.
 *
 * @returns undefined when they are equal, else where they differ.
 */
export async function compareFiles(a: string, b: string): Promise<string | undefined> {
  const [sizeA, sizeB] = [(await stat(a)).size, (await stat(b)).size];
  if (sizeA !== sizeB) return `${a} has ${sizeA} bytes, ${b} has ${sizeB}`;
  if (sizeA % 512 !== 0) {
    // qemu-img rounds such a file up to a sector, which it need not read the same way twice
    return (await sha256OfFile(a)) === (await sha256OfFile(b)) ? undefined : `${a} and ${b} differ`;
  }
  const child = spawn("qemu-img", ["compare", "-f", "raw", "-F", "raw", a, b], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  let said = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => (said += text));
  }
  const [code] = (await once(child, "close")) as [number | null];
  if (code === 0) return undefined;
  if (code === 1) return `${a} and ${b}: ${said.trim()}`;
  throw new Error(`qemu-img compare ended with ${code}: ${said}`);
}

/** Hands an endless stream out in pieces of any length. */
class Supply {
  readonly #blocks: AsyncIterator<Uint8Array> | Iterator<Uint8Array>;
  #rest: Uint8Array = new Uint8Array();

  constructor(blocks: AsyncIterator<Uint8Array> | Iterator<Uint8Array>) {
    this.#blocks = blocks;
  }

  async write(file: FileHandle, offset: number, length: number): Promise<void> {
    for (let written = 0; written < length;) {
      if (this.#rest.length === 0) this.#rest = (await this.#blocks.next()).value as Uint8Array;
      const part = this.#rest.subarray(0, length - written);
      await file.write(part, 0, part.length, offset + written);
      this.#rest = this.#rest.subarray(part.length);
      written += part.length;
    }
  }

  async close(): Promise<void> {
    await this.#blocks.return?.();
  }
}

// Below, a block may be overwritten when the next one is asked for.

/** The key stream of AES-256-CTR: as good as random, and faster than any generator written here. */
function* randomBlocks(seed: string): Generator<Uint8Array> {
  const cipher = createCipheriv("aes-256-ctr", hash("sha256", seed, "buffer"), Buffer.alloc(16));
  const zeros = Buffer.alloc(STEP);
  for (;;) yield cipher.update(zeros);
}

/**
 * Once through, and then again behind a few bytes that shift every file, so that the second time is no duplicate of
 * the first.
 */
async function* programBlocks(seed: string): AsyncGenerator<Uint8Array> {
  const buffer = Buffer.allocUnsafe(STEP);
  for (let pass = 0; ; pass++) {
    yield Buffer.from(`${seed} ${pass}`);
    for (const folder of PROGRAM_FOLDERS) {
      for await (const path of filesBelow(await realpath(folder))) {
        const file = await open(path);
        try {
          for (;;) {
            const { bytesRead } = await file.read(buffer, 0, STEP, null);
            if (bytesRead === 0) break;
            yield buffer.subarray(0, bytesRead);
          }
        } finally {
          await file.close();
        }
      }
    }
  }
}

/** Regular files in order of their names, looked for as they are needed. Links are left out: where they lead is met anyway. */
async function* filesBelow(folder: string): AsyncGenerator<string> {
  const entries = await readdir(folder, { withFileTypes: true });
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) yield* filesBelow(path);
    else if (entry.isFile()) yield path;
  }
}

function* textBlocks(seed: string): Generator<Uint8Array> {
  for (let block = 0; ; block++) {
    const lines: string[] = [];
    const dice = hash("sha256", `${seed} ${block}`, "buffer");
    for (let line = 0; line < 1024; line++) {
      const words = Array.from(
        { length: 9 },
        (_, i) => WORDS[(dice[(line * 7 + i * 5) % dice.length]! + line * i) % WORDS.length]!,
      );
      lines.push(`${String(block * 1024 + line).padStart(12, "0")} ${words.join(" ")}\n`);
    }
    yield Buffer.from(lines.join(""));
  }
}
