import { setTimeout as delay } from "node:timers/promises";
import { AppError } from "../errors.ts";

export interface RetryPolicy {
  /** Most calls, the first one included. */
  readonly attemptsMax: number;
  /** The first wait is up to this; each further one up to twice as long. */
  readonly baseMs: number;
  readonly waitMaxMs: number;
  /** No new attempt starts after this long since the first. */
  readonly budgetMs: number;
}

export const DEFAULT_RETRY: RetryPolicy = {
  attemptsMax: 12,
  baseMs: 200,
  waitMaxMs: 20_000,
  budgetMs: 300_000,
};

/** Full-jitter exponential wait before attempt `attempt` (1 = the first repetition), in milliseconds. */
export function backoffMs(policy: RetryPolicy, attempt: number): number {
  return Math.random() * Math.min(policy.waitMaxMs, policy.baseMs * 2 ** (attempt - 1));
}

/**
 * Calls `work` until it succeeds, fails with something not retryable, or the policy is used up; then throws the
 * last failure.
 */
export async function retry<T>(
  policy: RetryPolicy,
  signal: AbortSignal,
  work: (attempt: number) => Promise<T>,
): Promise<T> {
  const started = performance.now();
  for (let attempt = 1; ; attempt++) {
    try {
      return await work(attempt);
    } catch (error) {
      signal.throwIfAborted();
      const elapsedMs = performance.now() - started;
      const again = error instanceof AppError && error.retryable;
      if (!again || attempt >= policy.attemptsMax || elapsedMs > policy.budgetMs) throw error;
      await pause(backoffMs(policy, attempt), signal);
    }
  }
}

/** Waits; an abort ends the wait at once with the signal's own reason. */
export async function pause(ms: number, signal: AbortSignal): Promise<void> {
  try {
    await delay(ms, undefined, { signal });
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  }
}
