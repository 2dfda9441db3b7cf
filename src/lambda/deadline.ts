import { AppError, hasCode } from "../errors.ts";
import type { LambdaContext } from "./edge.ts";

/** What a run that is stopped may need to undo what it did, list what it stored and say so, milliseconds. */
const MARGIN_MS = 45_000;

/** Of a short invocation no more than this part is kept back. */
const MARGIN_PART = 0.25;

/** The end of an invocation, early enough to leave all in order. */
export class Deadline {
  readonly signal: AbortSignal;
  /** Milliseconds since 1970 at which Lambda ends the invocation, done or not. */
  readonly killedAt: number;
  readonly #timer: NodeJS.Timeout;

  constructor(context: LambdaContext, nowMs = Date.now()) {
    const leftMs = context.getRemainingTimeInMillis();
    const marginMs = Math.min(MARGIN_MS, leftMs * MARGIN_PART);
    const run = new AbortController();
    this.signal = run.signal;
    this.killedAt = nowMs + leftMs;
    this.#timer = setTimeout(() => run.abort(deadlineError()), Math.max(leftMs - marginMs, 0));
  }

  /** Lets go of the timer. */
  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
  }
}

export function deadlineError(): AppError {
  return new AppError("cancelled", "E_DEADLINE", "The function's time is over; the rest is for the next one");
}

/** True for what ended for want of time, and for nothing else. */
export function isDeadline(error: unknown): boolean {
  return hasCode(error, "E_DEADLINE");
}
