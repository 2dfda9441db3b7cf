import { createCipheriv } from "node:crypto";
import type { Extent, ExtentState } from "../../src/disk/disk.ts";

type Random = (below: number) => number;

/** Bytes that do not compress, the same for the same seed. */
export function noise(seed: number, length: number): Buffer {
  const key = Buffer.alloc(16);
  key.writeUInt32LE(seed >>> 0);
  return createCipheriv("aes-128-ctr", key, Buffer.alloc(16)).update(Buffer.alloc(length));
}

/** A disk's content, changed as guests change it; writes come from a small pool, so that chunks repeat. */
export class RandomDisk {
  readonly name: string;
  readonly #random: Random;
  readonly #chunkSize: number;
  bytes: Buffer;

  constructor(name: string, random: Random, chunkSize: number, chunksMax: number) {
    this.name = name;
    this.#random = random;
    this.#chunkSize = chunkSize;
    this.bytes = Buffer.alloc(this.#size(chunksMax));
    this.change(6);
  }

  /** Some writes and discards, aligned or not. */
  change(times: number): void {
    for (let time = 0; time < times; time++) this.#changeOnce();
  }

  /** Shrinks or grows; what is new reads as zeros. */
  resize(chunksMax: number): void {
    const resized = Buffer.alloc(this.#random(4) === 0 ? this.#nearby() : this.#size(chunksMax));
    this.bytes.copy(resized);
    this.bytes = resized;
  }

  /** Now and then a multiple of the chunk size, often not. */
  #size(chunksMax: number): number {
    const chunks = 1 + this.#random(chunksMax);
    const odd = [0, 1, 512, this.#chunkSize - 1, this.#random(this.#chunkSize)][this.#random(5)]!;
    return Math.max(1, chunks * this.#chunkSize - odd);
  }

  /** A little more or less than now, often within the last chunk. */
  #nearby(): number {
    return Math.max(1, this.bytes.length + this.#random(2 * this.#chunkSize) - this.#chunkSize);
  }

  #changeOnce(): void {
    const random = this.#random;
    const { length } = this.bytes;
    const aligned = random(2) === 0;
    const grain = aligned ? this.#chunkSize : 512;
    const offset = Math.min(Math.floor(random(length) / grain) * grain, length - 1);
    const most = (1 + random(6)) * this.#chunkSize;
    const end = Math.min(offset + (aligned ? most : 1 + random(most)), length);
    const kind = random(4);
    if (kind === 0) this.bytes.fill(0, offset, end);
    else if (kind === 1) this.bytes.fill(`line ${random(3)}\n`, offset, end);
    else {
      // one of a few contents, chunk after chunk: duplicates within the disk, between disks and over time
      for (let at = offset; at < end; at += this.#chunkSize) {
        noise(random(12), Math.min(this.#chunkSize, end - at)).copy(this.bytes, at);
      }
    }
  }
}

/** What an export says of itself: in blocks of `grain`, zeros are `zero` or `data`; nothing is `unchanged`. */
export function allocation(bytes: Buffer, grain: number, random: Random): Extent[] {
  return extentsOf(bytes.length, grain, (from, to) =>
    isZero(bytes.subarray(from, to)) && random(8) > 0 ? "zero" : "data",
  );
}

/**
 * What a dirty bitmap of granularity `grain` says: every block that differs is dirty, and some that do not. Beyond
 * the end of the disk as it was nothing is dirty: a bitmap knows nothing of a size that changed (R9 must).
 */
export function dirtySince(before: Buffer, bytes: Buffer, grain: number, random: Random): Extent[] {
  return extentsOf(bytes.length, grain, (from, to) => {
    const end = Math.min(to, before.length);
    const differs = from < end && !before.subarray(from, end).equals(bytes.subarray(from, end));
    if (!differs && random(10) > 0) return "unchanged";
    return isZero(bytes.subarray(from, to)) && random(4) > 0 ? "zero" : "data";
  });
}

function extentsOf(size: number, grain: number, state: (from: number, to: number) => ExtentState): Extent[] {
  const extents: Extent[] = [];
  for (let offset = 0; offset < size; offset += grain) {
    const length = Math.min(grain, size - offset);
    extents.push({ offset, length, state: state(offset, offset + length) });
  }
  return extents;
}

function isZero(bytes: Buffer): boolean {
  return !bytes.some((byte) => byte !== 0);
}
