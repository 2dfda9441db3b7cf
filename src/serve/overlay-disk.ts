import { MiB } from "../bytes/size.ts";
import type { BlockSize, Extent, Range } from "../disk/disk.ts";
import { endOf, overlap } from "../disk/extents.ts";
import type { LentBytes, ServedDisk } from "../nbd/server/served-disk.ts";
import { BlockState, type StateRun } from "./block-states.ts";
import { HeldBlocks } from "./held-blocks.ts";
import type { OverlayFile } from "./overlay-file.ts";

/** Zeros that are written are written in pieces of this many bytes. */
const ZEROS = new Uint8Array(MiB);

/** What is served under an overlay: it says what is zero, and it cannot be written. */
export type BaseDisk = ServedDisk & Required<Pick<ServedDisk, "extents">>;

/**
 * A disk that can be written although what it stands on cannot: what is written goes to the overlay, block by block,
 * and is read from there.
 *
 * A block that comes into the overlay is written whole, so that nothing in the file counts but what a state says.
 */
export class OverlayDisk implements ServedDisk {
  readonly readOnly = false;
  readonly blockSize: BlockSize;
  readonly size: number;
  readonly description: string;
  readonly #base: BaseDisk;
  readonly #overlay: OverlayFile;
  readonly #held = new HeldBlocks();

  /** Both stay the caller's. */
  constructor(base: BaseDisk, overlay: OverlayFile) {
    this.#base = base;
    this.#overlay = overlay;
    this.size = base.size;
    this.blockSize = base.blockSize;
    this.description = `${base.description ?? "a disk"}, written to ${overlay.path}`;
  }

  async read(offset: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
    const range = { offset, length: into.length };
    const reads = this.#parts(range).map(async ({ state, ...part }) => {
      const piece = into.subarray(part.offset - offset, endOf(part) - offset);
      if (state === BlockState.zero) piece.fill(0);
      else if (state === BlockState.data) await this.#overlay.read(part.offset, piece, signal);
      else await this.#base.read(part.offset, piece, signal);
    });
    const failed = (await Promise.allSettled(reads)).find(({ status }) => status === "rejected");
    if (failed?.status === "rejected") throw failed.reason;
  }

  /** What nobody has written. */
  async lend(offset: number, length: number, signal: AbortSignal): Promise<LentBytes | undefined> {
    const isBase = this.#parts({ offset, length }).every(({ state }) => state === BlockState.base);
    return isBase ? await this.#base.lend?.(offset, length, signal) : undefined;
  }

  async *extents(range: Range, signal: AbortSignal): AsyncGenerator<Extent, void, undefined> {
    for (const { state, ...part } of this.#parts(range)) {
      if (state === BlockState.base) yield* this.#base.extents(part, signal);
      else yield { ...part, state: state === BlockState.zero ? "zero" : "data" };
    }
  }

  async write(offset: number, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    const { head, blocks, tail } = this.#cut({ offset, length: bytes.length });
    const piece = (part: Range): Uint8Array => bytes.subarray(part.offset - offset, endOf(part) - offset);
    if (head !== undefined) await this.#writePart(head, piece(head), signal);
    if (blocks !== undefined) {
      const { first, end, ...part } = blocks;
      await this.#held.during(first, end, signal, async () => {
        await this.#overlay.write(part.offset, piece(part), signal);
        this.#overlay.states.set(first, end, BlockState.data);
      });
    }
    if (tail !== undefined) await this.#writePart(tail, piece(tail), signal);
  }

  /** Whole blocks only change their state, unless their space is to stay. What reads as zeros already stays as it is. */
  async zero(offset: number, length: number, mayTrim: boolean, signal: AbortSignal): Promise<void> {
    const { head, blocks, tail } = this.#cut({ offset, length });
    for (const part of [head, tail]) {
      if (part === undefined || (mayTrim && (await this.#isZero(part, signal)))) continue;
      await this.#writePart(part, new Uint8Array(part.length), signal);
    }
    if (blocks === undefined) return;
    const { first, end, ...part } = blocks;
    await this.#held.during(first, end, signal, async () => {
      if (mayTrim) {
        this.#overlay.states.set(first, end, BlockState.zero);
        return;
      }
      for (let done = 0; done < part.length; done += ZEROS.length) {
        const piece = ZEROS.subarray(0, Math.min(ZEROS.length, part.length - done));
        await this.#overlay.write(part.offset + done, piece, signal);
      }
      this.#overlay.states.set(first, end, BlockState.data);
    });
  }

  async flush(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    await this.#overlay.flush();
  }

  /** Writes inside of one block: in its place, or with all that is around it when the block is not in the overlay yet. */
  async #writePart(range: Range, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    const { blockSize } = this.#overlay.layout;
    const block = Math.floor(range.offset / blockSize);
    const inPlace = await this.#held.after(block, block + 1, signal, async () => {
      if (this.#overlay.states.get(block) !== BlockState.data) return false;
      await this.#overlay.write(range.offset, bytes, signal);
      return true;
    });
    if (inPlace) return;
    await this.#held.during(block, block + 1, signal, async () => {
      const whole = overlap(
        { offset: block * blockSize, length: blockSize },
        { offset: 0, length: this.size },
      )!;
      const merged = new Uint8Array(whole.length);
      await this.read(whole.offset, merged, signal);
      merged.set(bytes, range.offset - whole.offset);
      await this.#overlay.write(whole.offset, merged, signal);
      this.#overlay.states.set(block, block + 1, BlockState.data);
    });
  }

  async #isZero(range: Range, signal: AbortSignal): Promise<boolean> {
    for await (const { state } of this.extents(range, signal)) if (state !== "zero") return false;
    return true;
  }

  /** Whole blocks, and what is left of them before and behind. The disk's last block may be short and is whole. */
  #cut(range: Range): {
    readonly head?: Range;
    readonly blocks?: Range & { readonly first: number; readonly end: number };
    readonly tail?: Range;
  } {
    const { blockSize } = this.#overlay.layout;
    const stop = endOf(range);
    const first = Math.ceil(range.offset / blockSize);
    const end = stop === this.size ? this.#overlay.layout.blocks : Math.floor(stop / blockSize);
    if (first >= end) {
      // at most two blocks, neither of them whole
      const border = first * blockSize;
      if (border <= range.offset || border >= stop) return { head: range };
      return {
        head: { offset: range.offset, length: border - range.offset },
        tail: { offset: border, length: stop - border },
      };
    }
    const [from, to] = [first * blockSize, Math.min(end * blockSize, this.size)];
    return {
      ...(from > range.offset && { head: { offset: range.offset, length: from - range.offset } }),
      blocks: { first, end, offset: from, length: to - from },
      ...(stop > to && { tail: { offset: to, length: stop - to } }),
    };
  }

  #parts(range: Range): (Range & { readonly state: StateRun["state"] })[] {
    if (range.length === 0) return [];
    const { blockSize } = this.#overlay.layout;
    const [first, end] = [Math.floor(range.offset / blockSize), Math.ceil(endOf(range) / blockSize)];
    return [...this.#overlay.states.runs(first, end)].map((run) => {
      const whole = { offset: run.first * blockSize, length: run.count * blockSize };
      return { ...overlap(whole, range)!, state: run.state };
    });
  }
}
