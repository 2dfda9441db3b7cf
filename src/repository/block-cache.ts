import { MiB } from "../bytes/size.ts";

/** Enough for the segments and packs of a busy terabyte. */
export const BLOCK_CACHE_BYTES = 32 * MiB;

/**
 * Decoded blocks of layers, the least recently used given up first. One is shared by the layers of a disk.
 */
export class BlockCache {
  readonly #bytesMax: number;
  readonly #entries = new Map<string, { readonly block: unknown; readonly weight: number }>();
  #bytes = 0;

  /** @param bytesMax most bytes kept; the latest block is kept however large. */
  constructor(bytesMax: number = BLOCK_CACHE_BYTES) {
    this.#bytesMax = bytesMax;
  }

  /** Bytes kept now. */
  get bytes(): number {
    return this.#bytes;
  }

  /** What was set under the key; the caller knows its type, since keys name layer and block. */
  get(key: string): unknown {
    const entry = this.#entries.get(key);
    if (entry === undefined) return undefined;
    this.#entries.delete(key);
    this.#entries.set(key, entry);
    return entry.block;
  }

  /** @param weight bytes the block takes. */
  set(key: string, block: unknown, weight: number): void {
    this.#drop(key);
    this.#entries.set(key, { block, weight });
    this.#bytes += weight;
    for (const oldest of this.#entries.keys()) {
      if (this.#bytes <= this.#bytesMax || oldest === key) break;
      this.#drop(oldest);
    }
  }

  #drop(key: string): void {
    this.#bytes -= this.#entries.get(key)?.weight ?? 0;
    this.#entries.delete(key);
  }
}
