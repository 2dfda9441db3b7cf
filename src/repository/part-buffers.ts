import { pageAligned } from "../bytes/page-aligned.ts";
import { AppError } from "../errors.ts";
import { Budget } from "../flow/budget.ts";

/** A part being filled or sent. */
export interface Part {
  readonly bytes: Buffer;
  filled: number;
  /** Returns the buffer; twice is a no-op. */
  readonly giveBack: () => void;
}

/** Buffers for parts: made when first needed, used again, never more than the bound. */
export class PartBuffers {
  readonly #partSize: number;
  readonly #budget: Budget;
  readonly #free: Buffer[] = [];

  /** @param count 2 or more: one fills while another is sent. */
  constructor(partSize: number, count: number) {
    if (count < 2) throw new AppError("bug", "E_PARTS", `A pack writer needs two part buffers, not ${count}`);
    this.#partSize = partSize;
    this.#budget = new Budget(count);
  }

  /** Waits for a free buffer, first come first served. @throws the signal's reason. */
  async take(signal: AbortSignal): Promise<Part> {
    const giveBack = await this.#budget.take(1, signal);
    const bytes = this.#free.pop() ?? pageAligned(this.#partSize);
    let given = false;
    return {
      bytes,
      filled: 0,
      giveBack: (): void => {
        if (given) return;
        given = true;
        this.#free.push(bytes);
        giveBack();
      },
    };
  }
}
