import { open } from "node:fs/promises";
import { MiB } from "../bytes/size.ts";
import type { SparseDisk } from "./part-disk.ts";

const PIECE = MiB;

/** Copies a disk into a new file, with holes where it holds nothing. */
export async function copySparsely(disk: SparseDisk, path: string, signal: AbortSignal): Promise<void> {
  const file = await open(path, "wx", 0o600);
  try {
    await file.truncate(disk.size);
    const buffer = Buffer.alloc(PIECE);
    for await (const { offset, length, state } of disk.extents({ offset: 0, length: disk.size }, signal)) {
      if (state === "zero") continue;
      for (let at = offset; at < offset + length; at += PIECE) {
        const piece = buffer.subarray(0, Math.min(PIECE, offset + length - at));
        await disk.read(at, piece, signal);
        await file.write(piece, 0, piece.length, at);
      }
    }
  } finally {
    await file.close();
  }
}
