/** Stands in `RunTable.pack` for a run of zeros. No pack has this number. */
export const ZERO_PACK = 0xffff_ffff;

/**
 * Runs of chunks in four columns, ordered by chunk, without overlap: 16 bytes a run and no object each, since a
 * segment has up to 65,536 of them.
 */
export class RunTable {
  #length = 0;
  #first: Uint32Array;
  #count: Uint32Array;
  #pack: Uint32Array;
  #slot: Uint32Array;

  /** @param capacity runs to make room for; grows by doubling. */
  constructor(capacity: number) {
    const columns = Math.max(capacity, 1);
    this.#first = new Uint32Array(columns);
    this.#count = new Uint32Array(columns);
    this.#pack = new Uint32Array(columns);
    this.#slot = new Uint32Array(columns);
  }

  get length(): number {
    return this.#length;
  }

  /** Bytes it takes in memory. */
  get weight(): number {
    return this.#first.length * 16;
  }

  /** The run's first chunk. */
  first(run: number): number {
    return this.#first[run]!;
  }

  /** Chunks in the run. */
  count(run: number): number {
    return this.#count[run]!;
  }

  /** The chunk after the run's last. */
  end(run: number): number {
    return this.#first[run]! + this.#count[run]!;
  }

  /** Number of the pack in the layer's table, or `ZERO_PACK`. */
  pack(run: number): number {
    return this.#pack[run]!;
  }

  /** Slot of the run's first chunk; the others follow it. 0 for zeros. */
  slot(run: number): number {
    return this.#slot[run]!;
  }

  push(first: number, count: number, pack: number, slot: number): void {
    if (this.#length === this.#first.length) this.#grow();
    this.#first[this.#length] = first;
    this.#count[this.#length] = count;
    this.#pack[this.#length] = pack;
    this.#slot[this.#length] = slot;
    this.#length += 1;
  }

  /** Makes the last run longer. */
  extend(count: number): void {
    this.#count[this.#length - 1]! += count;
  }

  /** The first run, from `from` on, that ends after `chunk`; `length` when there is none. */
  find(chunk: number, from = 0): number {
    let low = from;
    let high = this.#length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.end(middle) > chunk) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  equals(other: RunTable): boolean {
    if (this.#length !== other.#length) return false;
    for (let run = 0; run < this.#length; run++) {
      const same =
        this.#first[run] === other.#first[run] &&
        this.#count[run] === other.#count[run] &&
        this.#pack[run] === other.#pack[run] &&
        this.#slot[run] === other.#slot[run];
      if (!same) return false;
    }
    return true;
  }

  /** Empties it, keeping the room. */
  clear(): void {
    this.#length = 0;
  }

  #grow(): void {
    const grow = (column: Uint32Array): Uint32Array => {
      const grown = new Uint32Array(column.length * 2);
      grown.set(column);
      return grown;
    };
    this.#first = grow(this.#first);
    this.#count = grow(this.#count);
    this.#pack = grow(this.#pack);
    this.#slot = grow(this.#slot);
  }
}
