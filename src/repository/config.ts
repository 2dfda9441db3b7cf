import { z } from "zod";
import { KiB, MiB, formatSize } from "../bytes/size.ts";
import { AppError, hasCode } from "../errors.ts";
import type { ObjectStore } from "../store/store.ts";
import { NO_PASSWORD, type Password, withMasterKey, writeKeySlot } from "./key-slots.ts";
import { type KeyNotes, type SealedConfig, newMasterKey, sealedConfig } from "./keys.ts";
import { lockedStore, objectLockSchema, requireObjectLock, type ObjectLock } from "./object-lock.ts";
import { REPOSITORY_KEY, keySlotKey, newUuid, parseKey } from "./names.ts";
import { checkRecord, decodeRecord, encodeRecord } from "./record.ts";
import { type Sealer, masterKeySealer, plainSealer } from "./sealing.ts";
import { timeText, uuid } from "./fields.ts";

export const FORMAT_VERSION = 1;

/** Bytes, both included; powers of two (FORMAT.md, "Limits"). */
export const ChunkSize = { min: 64 * KiB, max: 4 * MiB, default: 256 * KiB } as const;
export const PackSize = { min: MiB, max: 1024 * MiB, default: 64 * MiB } as const;
export const PartSize = { min: 64 * KiB, max: 256 * MiB, default: 16 * MiB } as const;

/** Most parts in a pack: some stores take no more. */
const PARTS_MAX = 1000;

/** `repository.json` is never larger, in bytes. */
const CONFIG_SIZE_MAX = 64 * KiB;

/** So many objects are looked at to tell what a prefix is; a foreign one may hold millions. */
const FIRST_KEYS = 1000;

const sizes = {
  chunkSize: z
    .int()
    .min(ChunkSize.min)
    .max(ChunkSize.max)
    .refine((size) => Number.isInteger(Math.log2(size)), "not a power of two"),
  packSize: z.int().min(PackSize.min).max(PackSize.max),
  partSize: z.int().min(PartSize.min).max(PartSize.max),
};

const configSchema = z
  .strictObject({
    format: z.literal(FORMAT_VERSION),
    repository: uuid,
    createdAt: timeText,
    /** Of the chunks' ids. */
    hash: z.literal("sha256"),
    encrypted: z.boolean(),
    ...sizes,
    objectLock: objectLockSchema.optional(),
  })
  .readonly()
  .superRefine((config, context) => {
    const why = sizeConflict(config);
    if (why !== undefined) context.addIssue(why);
  });

/** What `repository.json` says; never changes after `init`. Sizes in bytes. */
export type RepositoryConfig = z.infer<typeof configSchema>;

/** An open repository: what every reader and writer of its objects works on. */
export interface Repository {
  readonly store: ObjectStore;
  readonly config: RepositoryConfig;
  readonly sealer: Sealer;
}

export interface RepositorySizes {
  readonly chunkSize?: number;
  readonly packSize?: number;
  readonly partSize?: number;
}

/** What is asked of a new repository. */
export interface RepositoryWishes extends RepositorySizes {
  readonly objectLock?: ObjectLock;
}

/** Why sizes that are each allowed do not go together. */
function sizeConflict(config: { chunkSize: number; packSize: number; partSize: number }): string | undefined {
  const { chunkSize, packSize, partSize } = config;
  if (packSize < 4 * chunkSize) return "packs must hold at least 4 chunks";
  if (packSize < partSize) return "packs must be at least as large as their parts";
  if (packSize > PARTS_MAX * partSize) return `packs must not have more than ${PARTS_MAX} parts`;
  return undefined;
}

/** What makes a new repository an encrypted one. */
export interface FirstKey {
  /** At least one byte; the caller's to overwrite. */
  readonly password: Uint8Array;
  readonly notes: Omit<KeyNotes, "createdAt">;
}

/**
 * Creates a repository: its `repository.json`, under a prefix that holds nothing yet.
 *
 * Of an encrypted one the key goes first, so that there is never a repository without its key; what an init that was
 * interrupted leaves is a key that belongs to nothing, and the next init does not mind it.
 *
 * Two that race for one prefix: the loser gets E_REPOSITORY_EXISTS, also on a store that does not honour
 * create-only writes, because the winner is whoever is read back.
 *
 * @param first the password of an encrypted repository; none: it is plain.
 * @throws AppError E_REPOSITORY_SIZES, E_REPOSITORY_EXISTS, E_PREFIX_IN_USE, E_NO_OBJECT_LOCK (usage); nothing was
 *   changed then.
 */
export async function createRepository(
  place: ObjectStore,
  { objectLock, ...wanted }: RepositoryWishes,
  signal: AbortSignal,
  first?: FirstKey,
): Promise<Repository> {
  const chosen = chooseSizes(place, wanted);
  await refuseUsedPrefix(place, signal);
  if (objectLock !== undefined) await requireObjectLock(place, signal);
  const store = lockedStore(place, objectLock);
  const config: RepositoryConfig = {
    format: FORMAT_VERSION,
    repository: newUuid(),
    createdAt: (await store.now(signal)).toISOString(),
    hash: "sha256",
    encrypted: first !== undefined,
    ...chosen,
    ...(objectLock !== undefined && { objectLock }),
  };
  if (first === undefined) {
    await publishConfig(store, config, signal);
    return { store, config, sealer: plainSealer() };
  }
  const masterKey = newMasterKey();
  try {
    const sealed = sealedConfig(config.repository, encodeRecord(config));
    const { key } = await writeKeySlot(store, sealed, masterKey, first.password, first.notes, signal);
    try {
      await publishConfig(store, config, signal);
    } catch (error) {
      // another repository stands there: this key opens nothing, and its name is nobody else's
      if (hasCode(error, "E_REPOSITORY_EXISTS")) await store.delete([keySlotKey(key)], signal);
      throw error;
    }
    return { store, config, sealer: masterKeySealer(config.repository, masterKey) };
  } finally {
    masterKey.fill(0);
  }
}

/** The commit of an init. @throws AppError E_REPOSITORY_EXISTS (usage): there is another. */
async function publishConfig(
  store: ObjectStore,
  config: RepositoryConfig,
  signal: AbortSignal,
): Promise<void> {
  try {
    await store.put(REPOSITORY_KEY, encodeRecord(config), signal);
  } catch (error) {
    throw hasCode(error, "E_EXISTS") ? existsError(store, error) : error;
  }
  const winner = await readConfig(store, signal);
  if (winner.config.repository !== config.repository) throw existsError(store);
}

/**
 * Opens a repository by its `repository.json` and, when that says so, with a password.
 *
 * @param password read only for an encrypted repository.
 * @throws AppError E_NO_REPOSITORY (notFound), E_REPOSITORY_INCOMPLETE, E_RECORD (corrupt), E_REPOSITORY_VERSION
 *   (usage), E_NOT_ENCRYPTED (credentials: R14), and those of `withMasterKey`.
 */
export async function openRepository(
  place: ObjectStore,
  signal: AbortSignal,
  password: Password = NO_PASSWORD,
): Promise<Repository> {
  const { config, sealed } = await readConfig(place, signal);
  const store = lockedStore(place, config.objectLock);
  if (config.encrypted) {
    return await withMasterKey(store, sealed, password, signal, ({ masterKey }) => ({
      store,
      config,
      sealer: masterKeySealer(config.repository, masterKey),
    }));
  }
  if (password.given) throw notEncryptedError(store, password);
  return { store, config, sealer: plainSealer() };
}

/** As stored, and what its keys are sealed to. */
export interface StoredConfig {
  readonly config: RepositoryConfig;
  readonly sealed: SealedConfig;
}

/**
 * What `repository.json` says, which in an encrypted repository is not to be trusted before a key has been opened.
 *
 * @throws AppError E_NO_REPOSITORY (notFound), E_REPOSITORY_INCOMPLETE, E_RECORD (corrupt), E_REPOSITORY_VERSION (usage).
 */
export async function readConfig(store: ObjectStore, signal: AbortSignal): Promise<StoredConfig> {
  let bytes: Buffer;
  try {
    bytes = await store.get(REPOSITORY_KEY, CONFIG_SIZE_MAX, signal);
  } catch (error) {
    throw hasCode(error, "E_NO_OBJECT") ? await missingError(store, error, signal) : error;
  }
  const config = decodeConfig(bytes, store.location);
  return { config, sealed: sealedConfig(config.repository, bytes) };
}

/**
 * R14: a repository that lost its encryption is one that somebody put in its place.
 * @param password that was given.
 */
export function notEncryptedError(store: ObjectStore, password: Password): AppError {
  return new AppError(
    "credentials",
    "E_NOT_ENCRYPTED",
    `The repository ${store.location} says that it is not encrypted, yet a password was given; if it was encrypted, ` +
      `somebody has replaced its repository.json; if it never was, unset ${password.origin}`,
  );
}

/**
 * The config in the bytes of a `repository.json`.
 *
 * @param location names the repository in errors.
 * @throws AppError E_RECORD (corrupt), E_REPOSITORY_VERSION (usage).
 */
export function decodeConfig(bytes: Uint8Array, location: string): RepositoryConfig {
  const what = `repository.json of ${location}`;
  const document = decodeRecord(bytes, what);
  const format = document["format"];
  if (Number.isInteger(format) && Number(format) > FORMAT_VERSION) {
    throw new AppError(
      "usage",
      "E_REPOSITORY_VERSION",
      `The repository ${location} has format ${Number(format)}, newer than this program knows; update blockhaul`,
      { format: Number(format), known: FORMAT_VERSION },
    );
  }
  return checkRecord(configSchema, document, what);
}

function chooseSizes(store: ObjectStore, wanted: RepositorySizes): Required<RepositorySizes> {
  const chosen = {
    chunkSize: wanted.chunkSize ?? ChunkSize.default,
    packSize: wanted.packSize ?? PackSize.default,
    partSize: wanted.partSize ?? PartSize.default,
  };
  const checked = z.strictObject(sizes).safeParse(chosen);
  const issue = checked.error?.issues[0];
  const why = issue === undefined ? sizeConflict(chosen) : `${issue.path.join(".")}: ${issue.message}`;
  if (why !== undefined) throw sizesError(why, chosen);
  const { partSizeMin, partSizeMax } = store.limits;
  if (chosen.partSize < partSizeMin || chosen.partSize > partSizeMax) {
    const allowed = `${formatSize(partSizeMin)} to ${formatSize(partSizeMax)}`;
    throw sizesError(`${store.location} takes parts of ${allowed}`, chosen);
  }
  return chosen;
}

async function refuseUsedPrefix(store: ObjectStore, signal: AbortSignal): Promise<void> {
  const found = await firstKeys(store, signal);
  const unseen = found.length === FIRST_KEYS && (await store.head(REPOSITORY_KEY, signal)) !== undefined;
  if (unseen || found.includes(REPOSITORY_KEY)) throw existsError(store);
  const used = found.find((key) => !isLeftByInit(key));
  if (used === undefined && found.length < FIRST_KEYS) return;
  throw new AppError(
    "usage",
    "E_PREFIX_IN_USE",
    `${store.location} is not empty and holds no repository; choose an empty place`,
    { key: used },
  );
}

/** A key whose init was interrupted, or lost a race, before there was anything to open. */
function isLeftByInit(key: string): boolean {
  return parseKey(key)?.type === "key";
}

/** The keys that come first; none where a directory will only be made by the first write. */
async function firstKeys(store: ObjectStore, signal: AbortSignal): Promise<string[]> {
  const keys: string[] = [];
  try {
    for await (const { key } of store.list("", signal)) if (keys.push(key) === FIRST_KEYS) break;
  } catch (error) {
    if (!hasCode(error, "E_NO_BUCKET")) throw error;
  }
  return keys;
}

/** Tells an empty place from foreign objects and from a repository that lost its config. */
async function missingError(store: ObjectStore, cause: unknown, signal: AbortSignal): Promise<AppError> {
  const ours = (await firstKeys(store, signal)).find(
    (key) => parseKey(key) !== undefined && !isLeftByInit(key),
  );
  if (ours !== undefined) {
    return new AppError(
      "corrupt",
      "E_REPOSITORY_INCOMPLETE",
      `The repository ${store.location} has no repository.json though it holds ${ours}; put that file back from a copy`,
      { key: ours },
      cause,
    );
  }
  return new AppError(
    "notFound",
    "E_NO_REPOSITORY",
    `There is no repository in ${store.location}; run blockhaul init first`,
    {},
    cause,
  );
}

function existsError(store: ObjectStore, cause?: unknown): AppError {
  const message = `There is a repository in ${store.location} already; it was left as it is`;
  return new AppError("usage", "E_REPOSITORY_EXISTS", message, {}, cause);
}

function sizesError(why: string, sizes: Required<RepositorySizes>): AppError {
  return new AppError("usage", "E_REPOSITORY_SIZES", `Sizes that do not work: ${why}`, { ...sizes });
}
