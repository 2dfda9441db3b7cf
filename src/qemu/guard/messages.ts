import { AppError, messageOf, type ErrorCode, type ErrorContext, type ErrorKind } from "../../errors.ts";

/** What a guard of any kind is started with. */
export interface GuardSetup {
  /** The longest that a guest may stand frozen, from the request on. */
  readonly freezeBudgetMs: number;
  /** A parent that says nothing for so long hangs. */
  readonly silenceMs: number;
}

export interface GuardReady {
  /** The guest was found frozen, by whom nobody knows, and was thawed. */
  readonly foundFrozen: boolean;
  /** Why freezing will not work. */
  readonly agentError: ErrorFacts | undefined;
}

export interface Thawed {
  /** From the request to freeze to the answer to the thaw: no less than what the guest stood still. */
  readonly frozenMs: number;
  /** The budget ran out before the thaw was asked for. */
  readonly overrun: boolean;
}

/** What the guard does when asked, and what it answers. */
export interface GuardAnswers {
  readonly start: GuardReady;
  /** The number of file systems frozen. */
  readonly freeze: number;
  readonly thaw: Thawed;
  /** The guard goes: at once, or when it has thawed, which is then `false`. */
  readonly finish: boolean;
}

export type GuardCall = keyof GuardAnswers;

/** Parent to guard: a sign of life, or something to do. */
export type ToGuard =
  | "alive"
  | { readonly id: number; readonly call: "start"; readonly setup: GuardSetup }
  | { readonly id: number; readonly call: Exclude<GuardCall, "start"> };

/** Guard to parent. `heard` comes at once and tells a guard that works from one that hangs. */
export type FromGuard =
  | { readonly id: number; readonly heard: true }
  | { readonly id: number; readonly answer: GuardAnswers[GuardCall] }
  | { readonly id: number; readonly failure: ErrorFacts };

/** An `AppError` on its way between processes, without its cause. */
export interface ErrorFacts {
  readonly kind: ErrorKind;
  readonly code: ErrorCode;
  readonly message: string;
  readonly context: ErrorContext;
}

export function errorFacts(error: unknown): ErrorFacts {
  if (error instanceof AppError) {
    const { kind, code, message, context } = error;
    return { kind, code, message, context };
  }
  return { kind: "bug", code: "E_GUARD_BUG", message: `The guard failed: ${messageOf(error)}`, context: {} };
}

export function errorFrom({ kind, code, message, context }: ErrorFacts): AppError {
  return new AppError(kind, code, message, context);
}
