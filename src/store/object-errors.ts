import { AppError } from "../errors.ts";

/** What every store says in the same words about one object. */

export function noObject(location: string, key: string, cause?: unknown): AppError {
  return new AppError("notFound", "E_NO_OBJECT", `${location} holds no ${key}`, { location, key }, cause);
}

/** @param what "has 7 bytes; …" */
export function wrongSize(location: string, key: string, what: string): AppError {
  return new AppError("corrupt", "E_OBJECT_SIZE", `${location}: ${key} ${what}`, { location, key });
}

export function objectTaken(location: string, key: string, cause?: unknown): AppError {
  const message = `${location}: ${key} is there already with other bytes; objects are written once`;
  return new AppError("locked", "E_EXISTS", message, { location, key }, cause);
}

/** The store's interface was used in a way its contract rules out. */
export function uploadMisused(key: string, what: string): AppError {
  return new AppError("bug", "E_UPLOAD", `Upload of ${key}: ${what}`, { key });
}
