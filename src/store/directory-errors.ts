import { AppError, messageOf, systemCode } from "../errors.ts";

const FULL: readonly string[] = ["ENOSPC", "EDQUOT", "EFBIG"];
const REFUSED: readonly string[] = ["EACCES", "EPERM", "EROFS"];
const ABSENT: readonly string[] = ["ENOENT", "ENOTDIR"];

/** True when the error says that a file or one of its directories does not exist. */
export function isAbsent(error: unknown): boolean {
  return ABSENT.includes(systemCode(error) ?? "");
}

/**
 * What a failed call of the file system means to the user; an AppError comes back as it is.
 *
 * @param what the key, or what else was worked on.
 */
export function directoryError(error: unknown, location: string, what: string): AppError {
  if (error instanceof AppError) return error;
  const code = systemCode(error) ?? "";
  const context = { location, key: what, system: code };
  if (FULL.includes(code)) {
    const message = `No space left in ${location} for ${what} (${code}); free some space or raise the quota`;
    return new AppError("full", "E_STORE_FULL", message, context, error);
  }
  if (REFUSED.includes(code)) {
    const message = `Not allowed to use ${what} in ${location} (${code}); check owner, mode and mount options`;
    return new AppError("credentials", "E_ACCESS", message, context, error);
  }
  if (code === "EXDEV") {
    const message = `${location} is on more than one file system, seen at ${what}; a repository is on one`;
    return new AppError("usage", "E_STORE_SPLIT", message, context, error);
  }
  if (code === "") {
    return new AppError("bug", "E_STORE_BUG", `${location}: ${what}: ${messageOf(error)}`, context, error);
  }
  const message = `${location}: ${what}: ${messageOf(error)}`;
  return new AppError("unavailable", "E_STORE", message, context, error);
}

/** The directory itself is missing: perhaps not mounted. */
export function noDirectory(location: string): AppError {
  const message = `There is no directory ${location}; check the path, and that it is mounted`;
  return new AppError("notFound", "E_NO_BUCKET", message, { location });
}
