import { pageAlignedShared } from "../bytes/page-aligned.ts";
import { AppError } from "../errors.ts";
import { SEAL_OVERHEAD } from "./codec.ts";

/**
 * A piece of memory that the main thread and the workers share. Whoever took it owns it, and lends it to a call
 * of `ChunkWorkers` until that call settles.
 */
export interface Slab {
  /** All of one SharedArrayBuffer. Content is what the last owner left. */
  readonly bytes: Buffer<SharedArrayBuffer>;
  /** Gives it back to its pool; calling it twice is a no-op. Nobody may touch `bytes` afterwards. */
  release(): void;
}

/** Room for `chunks` chunks as read, and for their blobs after `ChunkWorkers.seal`, which may be longer; bytes. */
export function slabBytes(chunkSize: number, chunks: number): number {
  return chunks * (chunkSize + SEAL_OVERHEAD);
}

interface Waiter {
  readonly grant: (memory: Buffer<SharedArrayBuffer>) => void;
}

/**
 * A fixed number of slabs, first come first served: the bound on bytes in flight of a run.
 *
 * Memory is allocated when it is first needed and then kept; the slab used last is used next, so that a run
 * which needs few slabs touches few.
 */
export class SlabPool {
  readonly #slabBytes: number;
  readonly #free: Buffer<SharedArrayBuffer>[] = [];
  readonly #waiting: Waiter[] = [];
  #unborn: number;

  /** @param slabBytes bytes of each slab. @param count most slabs in use at once, >= 1. */
  constructor(slabBytes: number, count: number) {
    if (!(slabBytes > 0 && count >= 1)) {
      throw new AppError("bug", "E_SLABS", "A slab pool needs at least one slab of at least one byte", {
        slabBytes,
        count,
      });
    }
    this.#slabBytes = slabBytes;
    this.#unborn = count;
  }

  /** Waits for a slab. @throws the signal's reason when it is aborted first. */
  async take(signal: AbortSignal): Promise<Slab> {
    signal.throwIfAborted();
    return this.#slab(this.#memory() ?? (await this.#wait(signal)));
  }

  #memory(): Buffer<SharedArrayBuffer> | undefined {
    const memory = this.#free.pop();
    if (memory !== undefined || this.#unborn === 0) return memory;
    this.#unborn--;
    return pageAlignedShared(this.#slabBytes);
  }

  #slab(memory: Buffer<SharedArrayBuffer>): Slab {
    let released = false;
    return {
      bytes: memory,
      release: (): void => {
        if (released) return;
        released = true;
        const next = this.#waiting.shift();
        if (next === undefined) this.#free.push(memory);
        else next.grant(memory);
      },
    };
  }

  #wait(signal: AbortSignal): Promise<Buffer<SharedArrayBuffer>> {
    return new Promise((resolve, reject) => {
      const onAbort = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(waiter), 1);
        reject(signal.reason);
      };
      const waiter: Waiter = {
        grant: (memory): void => {
          signal.removeEventListener("abort", onAbort);
          resolve(memory);
        },
      };
      signal.addEventListener("abort", onAbort, { once: true });
      this.#waiting.push(waiter);
    });
  }
}
