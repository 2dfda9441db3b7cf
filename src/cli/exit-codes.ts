import { AppError, type ErrorKind } from "../errors.ts";

/** The exit codes of README.md. A missing kind is a compile error. */
export const EXIT_CODE: Readonly<Record<ErrorKind, number>> = {
  bug: 1,
  usage: 2,
  notFound: 10,
  locked: 11,
  credentials: 12,
  corrupt: 13,
  source: 14,
  unavailable: 15,
  full: 15,
  cancelled: 130,
};

/** `--strict`: done, but something was said on the way. */
export const EXIT_WARNINGS = 16;

export function exitCodeOf(error: unknown): number {
  return error instanceof AppError ? EXIT_CODE[error.kind] : EXIT_CODE.bug;
}
