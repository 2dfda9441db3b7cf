import { AppError, messageOf } from "../errors.ts";

/** The same trouble is told again after this long, milliseconds. */
const AGAIN_MS = 60_000;
/** Troubles told apart; more are forgotten all at once. */
const KEPT_MAX = 1000;

/**
 * Tells what went wrong, but not once for every request: a client may read a damaged place for ever, and a store that is
 * away fails all of them.
 */
export class TroubleLog {
  readonly #tell: (message: string) => void;
  readonly #now: () => number;
  readonly #toldAt = new Map<string, number>();

  /** @param now milliseconds. */
  constructor(tell: (message: string) => void, now: () => number = () => performance.now()) {
    this.#tell = tell;
    this.#now = now;
  }

  note(error: unknown): void {
    const key = keyOf(error);
    const now = this.#now();
    if (now - (this.#toldAt.get(key) ?? -Infinity) < AGAIN_MS) return;
    if (this.#toldAt.size >= KEPT_MAX) this.#toldAt.clear();
    this.#toldAt.set(key, now);
    this.#tell(messageOf(error));
  }
}

/** What is wrong, whoever asked for which bytes of it. */
function keyOf(error: unknown): string {
  if (!(error instanceof AppError)) return messageOf(error);
  const { pack, slot } = error.context;
  return [error.code, pack ?? "", slot ?? ""].join(" ");
}
