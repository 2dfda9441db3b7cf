import { createCipheriv, createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { open } from "node:fs/promises";
import { MiB } from "../../bytes/size.ts";

/** Deterministic noise: the same number always makes the same MiB, and no two alike. */
function noise(number: number): Buffer {
  const counter = Buffer.alloc(16);
  counter.writeUInt32BE(number + 1);
  return createCipheriv("aes-128-ctr", Buffer.alloc(16), counter).update(Buffer.alloc(MiB));
}

/** A MiB of something like a log file. */
function log(number: number): Buffer {
  const lines: string[] = [];
  for (let length = 0, line = 0; length < MiB; line++) {
    const text = `2026-11-22T03:${String(line % 60).padStart(2, "0")}:00Z web[${number}]: GET /item/${(line * 7919) % 10_007} 200\n`;
    lines.push(text);
    length += text.length;
  }
  return Buffer.from(lines.join("")).subarray(0, MiB);
}

/**
 * A sparse disk image: a quarter noise, a quarter text, an eighth a copy of the noise, the rest never written.
 *
 * @param size bytes.
 */
export async function makeDemoImage(path: string, size: number): Promise<void> {
  const file = await open(path, "wx");
  try {
    await file.truncate(size);
    const blocks = Math.floor(size / MiB);
    const quarter = Math.floor(blocks / 4);
    for (let block = 0; block < quarter; block++) {
      const random = noise(block);
      await file.write(random, 0, MiB, block * MiB);
      await file.write(log(block), 0, MiB, (quarter + block) * MiB);
      if (block % 2 === 0) await file.write(random, 0, MiB, (2 * quarter + block) * MiB);
    }
  } finally {
    await file.close();
  }
}

/** SHA-256 of a file's content, hex. */
export async function digestOf(path: string): Promise<string> {
  const digest = createHash("sha256");
  for await (const piece of createReadStream(path, { highWaterMark: MiB })) digest.update(piece as Buffer);
  return digest.digest("hex");
}
