import { AppError, hasCode } from "../errors.ts";
import type { ObjectStore } from "../store/store.ts";
import {
  KEY_SLOT_SIZE_MAX,
  type KeyNotes,
  type KeySlot,
  type SealedConfig,
  decodeKeySlot,
  encodeKeySlot,
  isSealed,
  unwrapMasterKey,
} from "./keys.ts";
import { Prefix, keySlotKey, newUuid, parseKey } from "./names.ts";

/** Most slots of a repository: each that a password does not open costs half a second. */
export const KEY_SLOTS_MAX = 64;

/** Where a password comes from; asked only when there is something to open. */
export interface Password {
  /** True when the user named one beforehand: a plain repository is refused then (R14). */
  readonly given: boolean;
  /** What the user would change about it, for messages: "BLOCKHAUL_PASSWORD_FILE". */
  readonly origin: string;
  /** @returns the password, the caller's to overwrite; undefined when there is none. */
  read(signal: AbortSignal): Promise<Buffer | undefined>;
}

export const NO_PASSWORD: Password = { given: false, origin: "", read: () => Promise.resolve(undefined) };

/** A slot as it was found: readable, or the reason why not. */
export type FoundSlot =
  | { readonly id: string; readonly slot: KeySlot; readonly damage?: undefined }
  | { readonly id: string; readonly slot?: undefined; readonly damage: AppError };

/**
 * Every object under `keys/`, in the order of ids; their seals are not checked.
 * @throws AppError E_TOO_MANY_KEYS (corrupt).
 */
export async function readKeySlots(
  store: ObjectStore,
  repository: string,
  signal: AbortSignal,
): Promise<FoundSlot[]> {
  const found: FoundSlot[] = [];
  for await (const { key } of store.list(Prefix.keys, signal)) {
    const name = parseKey(key);
    if (name?.type !== "key") continue;
    if (found.length === KEY_SLOTS_MAX) throw tooManyError(store);
    const slot = await readKeySlot(store, repository, name.id, signal);
    if (slot !== undefined) found.push(slot);
  }
  return found;
}

/** Undefined when it was removed meanwhile. */
async function readKeySlot(
  store: ObjectStore,
  repository: string,
  id: string,
  signal: AbortSignal,
): Promise<FoundSlot | undefined> {
  try {
    const bytes = await store.get(keySlotKey(id), KEY_SLOT_SIZE_MAX, signal);
    return { id, slot: decodeKeySlot(bytes, repository, id) };
  } catch (error) {
    if (hasCode(error, "E_NO_OBJECT")) return undefined;
    if (error instanceof AppError && error.kind === "corrupt") return { id, damage: error };
    throw error;
  }
}

/** What `work` of `withMasterKey` is given; the key is overwritten when `work` has settled. */
export interface Unlocked {
  readonly masterKey: Buffer;
  /** The slot that the password opened. */
  readonly opened: KeySlot;
  /** All there are. */
  readonly slots: readonly FoundSlot[];
}

/**
 * Opens a slot with the password and lends the master key out. One slot is tried at a time, so that memory for one
 * derivation is enough.
 *
 * @throws AppError (credentials) E_PASSWORD_NEEDED, E_PASSWORD: opens none; (corrupt) E_NO_KEYS, E_CONFIG_SEAL: the slot
 *   was made for another `repository.json` (R14); E_RECORD, E_MISPLACED: there are slots, but none that can be tried.
 */
export async function withMasterKey<T>(
  store: ObjectStore,
  config: SealedConfig,
  password: Password,
  signal: AbortSignal,
  work: (unlocked: Unlocked) => Promise<T> | T,
): Promise<T> {
  const slots = await readKeySlots(store, config.repository, signal);
  if (slots.length === 0) throw noKeysError(store);
  const bytes = await password.read(signal);
  if (bytes === undefined) throw passwordNeededError(store);
  try {
    for (const { slot } of slots) {
      if (slot === undefined) continue;
      signal.throwIfAborted();
      const masterKey = await unwrapMasterKey(slot, bytes);
      if (masterKey === undefined) continue;
      try {
        if (!isSealed(slot, config, masterKey)) throw configSealError(store, slot);
        return await work({ masterKey, opened: slot, slots });
      } finally {
        masterKey.fill(0);
      }
    }
  } finally {
    bytes.fill(0);
  }
  throw wrongPasswordError(store, password, slots);
}

/**
 * Writes a new slot, when it has been shown to open with its password.
 *
 * @param password at least one byte; the caller's to overwrite.
 */
export async function writeKeySlot(
  store: ObjectStore,
  config: SealedConfig,
  masterKey: Uint8Array,
  password: Uint8Array,
  notes: Omit<KeyNotes, "createdAt">,
  signal: AbortSignal,
): Promise<KeySlot> {
  const id = newUuid();
  const createdAt = (await store.now(signal)).toISOString();
  const bytes = await encodeKeySlot(config, id, { ...notes, createdAt }, masterKey, password);
  const slot = decodeKeySlot(bytes, config.repository, id);
  const back = await unwrapMasterKey(slot, password);
  const same = back?.equals(masterKey) === true && isSealed(slot, config, masterKey);
  back?.fill(0);
  if (!same) {
    throw new AppError("bug", "E_KEY_CHECK", `The new key ${id} did not open again; nothing was written`);
  }
  await store.put(keySlotKey(id), bytes, signal);
  return slot;
}

function passwordNeededError(store: ObjectStore): AppError {
  return new AppError(
    "credentials",
    "E_PASSWORD_NEEDED",
    `The repository ${store.location} is encrypted and no password was given; set BLOCKHAUL_PASSWORD_FILE, ` +
      "BLOCKHAUL_PASSWORD_COMMAND or BLOCKHAUL_PASSWORD",
  );
}

function wrongPasswordError(store: ObjectStore, password: Password, slots: readonly FoundSlot[]): AppError {
  const damages = slots.flatMap(({ damage }) => damage ?? []);
  if (damages.length === slots.length) return damages[0]!;
  const also =
    damages.length === 0 ? "" : `; ${damages.length} of its keys could not be tried: ${damages[0]!.message}`;
  return new AppError(
    "credentials",
    "E_PASSWORD",
    `The password does not open the repository ${store.location}; check ${password.origin}${also}`,
    { keys: slots.length, damaged: damages.length },
  );
}

function noKeysError(store: ObjectStore): AppError {
  return new AppError(
    "corrupt",
    "E_NO_KEYS",
    `The repository ${store.location} is encrypted and has no key left under ${Prefix.keys}; put one back from a copy`,
  );
}

function configSealError(store: ObjectStore, { key }: KeySlot): AppError {
  return new AppError(
    "corrupt",
    "E_CONFIG_SEAL",
    `The repository.json of ${store.location} is not the one that its key ${key} was made for, or the key's notes were ` +
      "changed: put both back from a copy, and find out who can write there",
    { key },
  );
}

function tooManyError(store: ObjectStore): AppError {
  return new AppError(
    "corrupt",
    "E_TOO_MANY_KEYS",
    `The repository ${store.location} has more than ${KEY_SLOTS_MAX} keys; delete what does not belong there`,
  );
}
