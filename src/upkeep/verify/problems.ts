import { AppError } from "../../errors.ts";

/** Something stored that is not what was stored. */
export interface Problem {
  readonly message: string;
  readonly code: string;
  /** Generations that need it, as far as known; none: no generation does. */
  readonly generations: readonly string[];
}

/** Problems that are told apart; of more only the number is kept. */
const PROBLEMS_MAX = 10_000;

/** True for what is wrong with the repository itself, and not with the way to it. */
export function isDamage(error: unknown): error is AppError {
  return error instanceof AppError && (error.kind === "corrupt" || error.code === "E_NO_OBJECT");
}

/** Collects problems; the same one of several generations is one. */
export class Problems {
  readonly #found = new Map<string, Omit<Problem, "generations"> & { readonly generations: Set<string> }>();
  #leftOut = 0;
  #transient = 0;

  /** Problems beyond the bound, which are only counted. */
  get leftOut(): number {
    return this.#leftOut;
  }

  /** Checks that failed once, and went well when they were made again. */
  get transient(): number {
    return this.#transient;
  }

  add({ message, code }: Pick<Problem, "message" | "code">, generations: Iterable<string>): void {
    const known = this.#found.get(message);
    if (known !== undefined) {
      for (const generation of generations) known.generations.add(generation);
    } else if (this.#found.size === PROBLEMS_MAX) this.#leftOut++;
    else this.#found.set(message, { message, code, generations: new Set(generations) });
  }

  /**
   * Runs a check. What is wrong with the repository is tried once more from the store, because a wire or a disk cache
   * that failed once has damaged nothing. Every other error ends the run.
   *
   * @param check must not answer from a cache what failed before.
   */
  async twice<T>(check: () => Promise<T>, signal: AbortSignal): Promise<Checked<T>> {
    const first = await attempt(check, signal);
    if (first.damage === undefined) return first;
    const second = await attempt(check, signal);
    if (second.damage === undefined) this.#transient++;
    return second;
  }

  /** As `twice`, and notes what failed. @returns undefined then. */
  async noting<T>(
    generations: Iterable<string>,
    signal: AbortSignal,
    check: () => Promise<T>,
  ): Promise<T | undefined> {
    const checked = await this.twice(check, signal);
    if (checked.damage !== undefined) this.add(checked.damage, generations);
    return checked.value;
  }

  /** @param isThere which generations still exist: one that was forgotten meanwhile misses nothing. */
  list(isThere: (generation: string) => boolean): Problem[] {
    return [...this.#found.values()]
      .map((problem) => ({ ...problem, generations: [...problem.generations].filter(isThere) }))
      .filter(({ message, generations }) => {
        return generations.length > 0 || this.#found.get(message)!.generations.size === 0;
      });
  }
}

/** What a check gave, or what is damaged. */
export type Checked<T> =
  | { readonly value: T; readonly damage?: undefined }
  | { readonly value?: undefined; readonly damage: AppError };

/** @throws what is no damage. */
export async function attempt<T>(check: () => Promise<T>, signal: AbortSignal): Promise<Checked<T>> {
  try {
    return { value: await check() };
  } catch (error) {
    signal.throwIfAborted();
    if (!isDamage(error)) throw error;
    return { damage: error };
  }
}
