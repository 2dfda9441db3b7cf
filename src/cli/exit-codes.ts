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

/** Of several failures the one that most needs somebody's attention comes first; one that was stopped was stopped. */
const WORST_FIRST: readonly ErrorKind[] = [
  "cancelled",
  "bug",
  "corrupt",
  "credentials",
  "usage",
  "notFound",
  "full",
  "source",
  "unavailable",
  "locked",
];

/** The exit code of the worst of several errors; 0 without any. */
export function worstExitCode(errors: readonly unknown[]): number {
  const kinds = errors.map((error) => (error instanceof AppError ? error.kind : "bug"));
  const worst = WORST_FIRST.find((kind) => kinds.includes(kind));
  return worst === undefined ? 0 : EXIT_CODE[worst];
}
