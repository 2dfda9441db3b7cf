import { resolve } from "node:path";
import { directoryError } from "./directory-errors.ts";
import { DirectoryStore } from "./directory.ts";
import { makeDurableDirectory } from "./durable.ts";
import { LimitedStore } from "./limited-store.ts";
import { parseLocation } from "./location.ts";
import type { S3Options } from "./s3-connection.ts";
import type { ObjectStore } from "./store.ts";

/**
 * The store at a location in one of the forms of `parseLocation`. Nothing is asked yet: whether it is there, and
 * whether it lets us in, shows with the first call.
 *
 * @throws AppError E_LOCATION (usage).
 */
export async function openStore(location: string, options: S3Options = {}): Promise<ObjectStore> {
  const parsed = parseLocation(location);
  if (parsed.kind === "directory") {
    const store = new DirectoryStore(parsed.path);
    return options.allowance === undefined ? store : new LimitedStore(store, options.allowance);
  }
  const { S3Store } = await import("./s3.ts"); // with the AWS SDK: 70 ms and 20 MiB that a directory can do without
  return S3Store.open(parsed, options);
}

/**
 * As `openStore`, for a place that may not be there yet: a missing directory is made. Buckets are not: they cost
 * money and have settings that nobody can guess.
 *
 * @throws AppError E_LOCATION (usage), E_ACCESS (credentials), E_STORE_FULL (full).
 */
export async function openNewStore(location: string, options: S3Options = {}): Promise<ObjectStore> {
  const parsed = parseLocation(location);
  if (parsed.kind === "directory") {
    const path = resolve(parsed.path);
    await makeDurableDirectory(path, path).catch((error: unknown) => {
      throw directoryError(error, parsed.path, "the directory");
    });
  }
  return await openStore(location, options);
}
