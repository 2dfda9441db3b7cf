/**
 * What kind of trouble an error is. The set is closed: the kind alone decides the exit code
 * (`src/cli/exit-codes.ts`) and whether a retry makes sense.
 *
 * - `usage`        the caller asked for something that cannot be: wrong flag, target too small, target exists
 * - `notFound`     a repository, generation, export or bucket that is not there
 * - `locked`       somebody else holds it, or took the name first
 * - `credentials`  refused: wrong keys, wrong password, no permission
 * - `corrupt`      stored bytes are not what was stored
 * - `source`       the disk being read or written failed, or its server broke the protocol
 * - `unavailable`  the storage or network does not answer now; the only kind worth a retry
 * - `full`         no space or quota left on the storage: waiting does not help
 * - `cancelled`    the user or a deadline stopped the run
 * - `bug`          our own mistake
 */
export type ErrorKind =
  | "usage"
  | "notFound"
  | "locked"
  | "credentials"
  | "corrupt"
  | "source"
  | "unavailable"
  | "full"
  | "cancelled"
  | "bug";

export type ErrorCode = `E_${string}`;

/** Facts for logs and JSON reports; never secrets. */
export type ErrorContext = Readonly<Record<string, string | number | boolean | undefined>>;

/**
 * Every error this program throws on purpose.
 *
 * The message is a sentence-case line without a full stop that names the object and, where the user can do
 * something, says what. `code` is stable and unique to the cause; `cause` keeps what led here.
 */
export class AppError extends Error {
  readonly kind: ErrorKind;
  readonly code: ErrorCode;
  readonly context: ErrorContext;

  constructor(
    kind: ErrorKind,
    code: ErrorCode,
    message: string,
    context: ErrorContext = {},
    cause?: unknown,
  ) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "AppError";
    this.kind = kind;
    this.code = code;
    this.context = context;
  }

  /** Only these may be tried again; everything else fails the same way twice. */
  get retryable(): boolean {
    return this.kind === "unavailable";
  }
}

/** True for our own error with this code. */
export function hasCode(error: unknown, code: ErrorCode): error is AppError {
  return error instanceof AppError && error.code === code;
}

/** One line for a person, whatever was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The `code` of a system error ("ENOSPC"), if it has one. */
export function systemCode(error: unknown): string | undefined {
  if (error === null || typeof error !== "object" || !("code" in error)) return undefined;
  return typeof error.code === "string" ? error.code : undefined;
}
