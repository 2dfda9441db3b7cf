import { AppError } from "../errors.ts";

/** Bytes; a directory store puts a whole key into one file name of its temporary files (255 bytes at most). */
export const KEY_LENGTH_MAX = 200;

const SEGMENT = "[A-Za-z0-9_-][A-Za-z0-9._-]*";
const KEY = new RegExp(`^${SEGMENT}(?:/${SEGMENT})*$`);
const PREFIX = new RegExp(`^(?:${SEGMENT}/)*(?:${SEGMENT})?$`);

/**
 * Holds a key to the contract: such keys mean the same to every server and file system, need no escaping, and
 * cannot leave the repository's prefix.
 *
 * @throws AppError E_KEY (bug).
 */
export function checkKey(key: string): void {
  if (key.length > KEY_LENGTH_MAX || !KEY.test(key)) {
    throw new AppError("bug", "E_KEY", `Not a key: "${key.slice(0, KEY_LENGTH_MAX)}"`);
  }
}

/** As `checkKey`, for the beginning of a key, which may end anywhere; "" is every key's. */
export function checkPrefix(prefix: string): void {
  if (prefix.length > KEY_LENGTH_MAX || !PREFIX.test(prefix)) {
    throw new AppError("bug", "E_KEY", `Not the beginning of a key: "${prefix.slice(0, KEY_LENGTH_MAX)}"`);
  }
}

/** True for a name that can be a segment of a key. */
export function isSegment(name: string): boolean {
  return KEY.test(name) && !name.includes("/");
}
