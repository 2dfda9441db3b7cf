/** Where a block of an overlay's disk is to be read. */
export const BlockState = {
  /** In the generation: never written. */
  base: 0,
  /** In the overlay. */
  data: 1,
  /** Nowhere: it reads as zeros. */
  zero: 2,
} as const;

export type BlockState = (typeof BlockState)[keyof typeof BlockState];

/** Consecutive blocks in one state. */
export interface StateRun {
  readonly first: number;
  /** Blocks, >= 1. */
  readonly count: number;
  readonly state: BlockState;
}

/** Bytes that are stored at once: an overlay's states change in pages. */
export const STATE_PAGE = 4096;
/** Two bits a block, the first block in the lowest bits. */
const PER_BYTE = 4;
/** A byte of four blocks in one state, by state. */
const UNIFORM = [0x00, 0x55, 0xaa] as const;

/** Bytes of the states of so many blocks, in whole pages. */
export function stateBytes(blocks: number): number {
  return Math.max(1, Math.ceil(blocks / PER_BYTE / STATE_PAGE)) * STATE_PAGE;
}

/** The states of an overlay's blocks in memory, and which pages of them are not stored yet. */
export class BlockStates {
  readonly #bytes: Uint8Array;
  readonly #dirty = new Set<number>();

  /** @param bytes as stored, whole pages; they belong to this object from now on. */
  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  get(block: number): BlockState {
    return ((this.#bytes[Math.floor(block / PER_BYTE)]! >> ((block % PER_BYTE) * 2)) & 3) as BlockState;
  }

  /** Sets blocks `first` to `end` - 1. */
  set(first: number, end: number, state: BlockState): void {
    for (let block = first; block < end;) {
      const byte = Math.floor(block / PER_BYTE);
      this.#dirty.add(Math.floor(byte / STATE_PAGE));
      if (block % PER_BYTE === 0 && block + PER_BYTE <= end) {
        this.#bytes[byte] = UNIFORM[state];
        block += PER_BYTE;
        continue;
      }
      const shift = (block % PER_BYTE) * 2;
      this.#bytes[byte] = (this.#bytes[byte]! & ~(3 << shift)) | (state << shift);
      block++;
    }
  }

  /** Blocks `first` to `end` - 1, neighbours in one state joined. */
  *runs(first: number, end: number): Generator<StateRun, void> {
    for (let block = first; block < end;) {
      const state = this.get(block);
      let next = block + 1;
      while (next < end) {
        const whole = next % PER_BYTE === 0 && next + PER_BYTE <= end;
        if (whole && this.#bytes[next / PER_BYTE] === UNIFORM[state]) next += PER_BYTE;
        else if (this.get(next) === state) next++;
        else break;
      }
      yield { first: block, count: next - block, state };
      block = next;
    }
  }

  /**
   * Takes the pages that changed since they were taken last, as they are now.
   *
   * @returns sorted; neighbours are one stretch. `offset` in bytes, from the beginning of the states.
   */
  takeDirty(): { readonly offset: number; readonly bytes: Uint8Array }[] {
    const pages = [...this.#dirty].sort((a, b) => a - b);
    this.#dirty.clear();
    const stretches: { offset: number; bytes: Uint8Array }[] = [];
    for (let index = 0; index < pages.length;) {
      let after = index + 1;
      while (after < pages.length && pages[after] === pages[after - 1]! + 1) after++;
      const [offset, end] = [pages[index]! * STATE_PAGE, (pages[after - 1]! + 1) * STATE_PAGE];
      // a copy: `slice` of a Buffer would be a view, and change with what is written while the flush is under way
      stretches.push({ offset, bytes: new Uint8Array(this.#bytes.subarray(offset, end)) });
      index = after;
    }
    return stretches;
  }

  /** Pages that were taken and could not be stored. */
  giveBack(stretches: readonly { readonly offset: number; readonly bytes: Uint8Array }[]): void {
    for (const { offset, bytes } of stretches) {
      for (let at = 0; at < bytes.length; at += STATE_PAGE) this.#dirty.add((offset + at) / STATE_PAGE);
    }
  }

  /** False for bytes that no overlay can have stored. */
  get sound(): boolean {
    return this.#bytes.every((byte) => (byte & (byte >> 1) & 0x55) === 0); // no block has both bits
  }
}
