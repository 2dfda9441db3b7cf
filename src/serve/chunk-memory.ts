import { pageAlignedShared } from "../bytes/page-aligned.ts";

/** Room for one chunk, and the chunk that is in it. All but reading is for `ChunkMemory`. */
export class Cell {
  /** Where it begins in `ChunkMemory.room`. */
  readonly at: number;
  /** Not to be changed; as long as the chunk. */
  bytes: Buffer;
  /** Keys under which it is kept. */
  keys = 0;
  /** Who has borrowed it. */
  lent = 0;
  /** It comes free when the turn of the event loop is over, unless somebody borrows it. */
  retired = false;

  constructor(at: number, bytes: Buffer) {
    this.at = at;
    this.bytes = bytes;
  }
}

export interface ChunkMemoryOptions {
  /** Bytes of a cell; no chunk is longer. */
  readonly chunkSize: number;
  /** Most chunks kept while nobody reads them, >= 1. */
  readonly kept: number;
  /** Most cells that are filled at once. */
  readonly arriving: number;
  /** Most cells that are lent at once. */
  readonly lent: number;
}

/**
 * Chunks in memory up to a bound, the least recently used given up first. All of it is one piece of memory that worker
 * threads fill and sockets send from, so that nobody copies a chunk; it takes memory only as it is touched.
 *
 * Whoever is handed a chunk must have copied or borrowed what they want of it before the turn of the event loop is over.
 */
export class ChunkMemory {
  /** For the threads that fill cells. */
  readonly room: Buffer<SharedArrayBuffer>;
  readonly #options: ChunkMemoryOptions;
  /** In order of use, the latest last. */
  readonly #kept = new Map<string, Cell>();
  /** The last one that came free is used first: it was touched. */
  readonly #free: Cell[] = [];
  readonly #cells: number;
  #born = 0;
  #lent = 0;
  #retired: Cell[] = [];

  constructor(options: ChunkMemoryOptions) {
    this.#options = options;
    this.#cells = options.kept + options.arriving + options.lent;
    this.room = pageAlignedShared(this.#cells * options.chunkSize);
  }

  get(key: string): Cell | undefined {
    const cell = this.#kept.get(key);
    if (cell === undefined) return undefined;
    this.#kept.delete(key);
    this.#kept.set(key, cell);
    return cell;
  }

  /**
   * Cells to be filled; each is to be kept or given back. With no more than `arriving` taken there is room for them as
   * soon as this turn of the event loop is over.
   */
  async take(count: number): Promise<readonly Cell[]> {
    while (this.#free.length + this.#cells - this.#born < count) await new Promise(setImmediate);
    return Array.from({ length: count }, () => this.#free.pop() ?? this.#newCell());
  }

  /** Gives back a cell that was taken and is not kept under any key. */
  give(cell: Cell): void {
    this.#free.push(cell);
  }

  /** Keeps what a cell was filled with, under as many keys as one likes. @param length bytes of the chunk. */
  keep(key: string, cell: Cell, length: number): void {
    cell.bytes = this.room.subarray(cell.at, cell.at + length);
    cell.keys++;
    this.#drop(key);
    this.#kept.set(key, cell);
    for (const oldest of this.#kept.keys()) {
      if (this.#kept.size <= this.#options.kept) break;
      this.#drop(oldest);
    }
  }

  /**
   * Lets somebody use a chunk for longer than this turn of the event loop.
   *
   * @returns gives it back, to be called once; undefined when so many are lent that it has to be copied.
   */
  lend(cell: Cell): (() => void) | undefined {
    if (cell.lent === 0) {
      if (this.#lent === this.#options.lent) return undefined;
      this.#lent++;
    }
    cell.lent++;
    return () => {
      cell.lent--;
      if (cell.lent > 0) return;
      this.#lent--;
      if (cell.keys === 0) this.#retire(cell);
    };
  }

  #newCell(): Cell {
    const { chunkSize } = this.#options;
    const at = this.#born++ * chunkSize;
    return new Cell(at, this.room.subarray(at, at + chunkSize));
  }

  #drop(key: string): void {
    const cell = this.#kept.get(key);
    if (cell === undefined) return;
    this.#kept.delete(key);
    cell.keys--;
    if (cell.keys === 0 && cell.lent === 0) this.#retire(cell);
  }

  /** Not free at once: who was handed it in this turn may still be on the way to copying or borrowing it. */
  #retire(cell: Cell): void {
    if (cell.retired) return;
    cell.retired = true;
    this.#retired.push(cell);
    if (this.#retired.length === 1) setImmediate(() => this.#reuse());
  }

  #reuse(): void {
    for (const cell of this.#retired) {
      cell.retired = false;
      if (cell.lent === 0) this.#free.push(cell);
    }
    this.#retired = [];
  }
}
