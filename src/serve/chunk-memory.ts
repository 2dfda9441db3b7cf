import { MiB } from "../bytes/size.ts";

/** Most bytes of memory that waits to be used again. */
const SPARE_MAX = 32 * MiB;

/**
 * Chunks in memory up to a bound, the least recently used given up first. Their memory is used again: fresh memory for
 * everything that is read costs half of the processor time of serving it, for page faults and garbage collection.
 *
 * So whoever is handed a chunk must have copied what they want of it before the turn of the event loop is over.
 */
export class ChunkMemory {
  readonly #bytesMax: number;
  /** In order of use, the latest last. */
  readonly #kept = new Map<string, Buffer>();
  readonly #spare = new Map<number, Buffer[]>();
  #retired: Buffer[] = [];
  #bytes = 0;
  #spareBytes = 0;

  /** @param bytesMax most bytes kept; the latest chunk is kept however large. */
  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  get(key: string): Uint8Array | undefined {
    const bytes = this.#kept.get(key);
    if (bytes === undefined) return undefined;
    this.#kept.delete(key);
    this.#kept.set(key, bytes);
    return bytes;
  }

  /** Keeps a copy. @returns the copy. */
  keep(key: string, content: Uint8Array): Uint8Array {
    this.#drop(key);
    const bytes = this.#take(content.length);
    bytes.set(content);
    this.#kept.set(key, bytes);
    this.#bytes += bytes.length;
    for (const oldest of this.#kept.keys()) {
      if (this.#bytes <= this.#bytesMax || oldest === key) break;
      this.#drop(oldest);
    }
    return bytes;
  }

  #take(length: number): Buffer {
    const spare = this.#spare.get(length)?.pop();
    if (spare === undefined) return Buffer.allocUnsafeSlow(length);
    this.#spareBytes -= length;
    return spare;
  }

  #drop(key: string): void {
    const bytes = this.#kept.get(key);
    if (bytes === undefined) return;
    this.#kept.delete(key);
    this.#bytes -= bytes.length;
    // not at once: who was handed it in this turn may still be on the way to copying it
    this.#retired.push(bytes);
    if (this.#retired.length === 1) setImmediate(() => this.#reuse());
  }

  #reuse(): void {
    for (const bytes of this.#retired) {
      if (this.#spareBytes + bytes.length > SPARE_MAX) break;
      this.#spareBytes += bytes.length;
      const spares = this.#spare.get(bytes.length);
      if (spares === undefined) this.#spare.set(bytes.length, [bytes]);
      else spares.push(bytes);
    }
    this.#retired = [];
  }
}
