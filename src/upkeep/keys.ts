import { AppError } from "../errors.ts";
import { type StoredConfig, notEncryptedError, readConfig } from "../repository/config.ts";
import {
  type FoundSlot,
  KEY_SLOTS_MAX,
  type Password,
  type Unlocked,
  readKeySlots,
  withMasterKey,
  writeKeySlot,
} from "../repository/key-slots.ts";
import { type KeySlot, KEY_SLOT_SIZE_MAX, isSealed } from "../repository/keys.ts";
import { keySlotKey } from "../repository/names.ts";
import type { ObjectStore } from "../store/store.ts";

/**
 * What is known of a key: `opened` by the password, `sealed` by somebody who has the master key, `unchecked` where no
 * password was given, `foreign` when nobody with the master key made it, or it cannot be read at all.
 */
export type KeyStatus = "opened" | "sealed" | "unchecked" | "foreign";

/** A key for people. */
export interface KeyReport {
  readonly id: string;
  readonly status: KeyStatus;
  /** Undefined when it cannot be read. */
  readonly slot: KeySlot | undefined;
  readonly damage: AppError | undefined;
}

/** Whom a new key is for. */
export interface KeyOwner {
  readonly label: string;
  readonly host: string;
}

/**
 * Every key of the repository; with a password, also which one it opens, and which were made by nobody who has the
 * master key.
 *
 * @param password undefined: they are listed unchecked.
 */
export async function listKeys(
  store: ObjectStore,
  password: Password | undefined,
  signal: AbortSignal,
): Promise<KeyReport[]> {
  const stored = await readEncrypted(store, password, signal);
  if (password === undefined) {
    const slots = await readKeySlots(store, stored.config.repository, signal);
    return slots.map((found) => report(found, found.slot === undefined ? "foreign" : "unchecked"));
  }
  return await withMasterKey(store, stored.sealed, password, signal, (unlocked) =>
    unlocked.slots.map((found) => report(found, statusOf(found, stored, unlocked))),
  );
}

/** Adds a key for another password. @returns it. @throws AppError E_TOO_MANY_KEYS (usage), those of `withMasterKey`. */
export async function addKey(
  store: ObjectStore,
  password: Password,
  newPassword: (signal: AbortSignal) => Promise<Buffer>,
  owner: KeyOwner,
  signal: AbortSignal,
): Promise<KeySlot> {
  const stored = await readEncrypted(store, password, signal);
  return await withMasterKey(store, stored.sealed, password, signal, async (unlocked) => {
    return await addTo(store, stored, unlocked, newPassword, owner, signal);
  });
}

/**
 * Puts a new password in the place of the one that is given: adds a key, then removes the one that was opened. An
 * interruption between the two leaves both.
 */
export async function changePassword(
  store: ObjectStore,
  password: Password,
  newPassword: (signal: AbortSignal) => Promise<Buffer>,
  host: string,
  signal: AbortSignal,
): Promise<{ readonly added: KeySlot; readonly removed: KeySlot }> {
  const stored = await readEncrypted(store, password, signal);
  return await withMasterKey(store, stored.sealed, password, signal, async (unlocked) => {
    const owner = { label: unlocked.opened.label, host };
    const added = await addTo(store, stored, unlocked, newPassword, owner, signal);
    await store.delete([keySlotKey(unlocked.opened.key)], signal);
    return { added, removed: unlocked.opened };
  });
}

/**
 * Removes a key.
 *
 * What it removes it puts back when no other key is left afterwards: two that remove each other's last key at the
 * same moment must not lock everybody out.
 *
 * @param wanted its id, or how it begins.
 * @throws AppError E_NO_KEY (notFound), E_KEY_AMBIGUOUS, E_LAST_KEY (usage), those of `withMasterKey`.
 */
export async function removeKey(
  store: ObjectStore,
  password: Password,
  wanted: string,
  signal: AbortSignal,
): Promise<string> {
  const stored = await readEncrypted(store, password, signal);
  return await withMasterKey(store, stored.sealed, password, signal, async (unlocked) => {
    const { id } = chooseSlot(store, unlocked.slots, wanted);
    if (!hasSound(unlocked.slots, id, stored, unlocked)) throw lastKeyError(store, id);
    const bytes = await store.get(keySlotKey(id), KEY_SLOT_SIZE_MAX, signal);
    await store.delete([keySlotKey(id)], signal);
    const left = await readKeySlots(store, stored.config.repository, signal);
    if (!hasSound(left, id, stored, unlocked)) {
      await store.put(keySlotKey(id), bytes, signal);
      throw lastKeyError(store, id);
    }
    return id;
  });
}

async function addTo(
  store: ObjectStore,
  { sealed }: StoredConfig,
  { masterKey, slots }: Unlocked,
  newPassword: (signal: AbortSignal) => Promise<Buffer>,
  owner: KeyOwner,
  signal: AbortSignal,
): Promise<KeySlot> {
  if (slots.length >= KEY_SLOTS_MAX) {
    const message = `The repository ${store.location} has ${KEY_SLOTS_MAX} keys, which is the most; remove one first`;
    throw new AppError("usage", "E_TOO_MANY_KEYS", message);
  }
  const password = await newPassword(signal);
  try {
    return await writeKeySlot(store, sealed, masterKey, password, owner, signal);
  } finally {
    password.fill(0);
  }
}

/** @throws AppError E_NO_PASSWORDS (usage), E_NOT_ENCRYPTED (credentials: R14). */
async function readEncrypted(
  store: ObjectStore,
  password: Password | undefined,
  signal: AbortSignal,
): Promise<StoredConfig> {
  const stored = await readConfig(store, signal);
  if (stored.config.encrypted) return stored;
  if (password?.given === true) throw notEncryptedError(store, password);
  const message = `The repository ${store.location} is not encrypted and has no keys; only init --encrypt makes one that has`;
  throw new AppError("usage", "E_NO_PASSWORDS", message);
}

function report({ id, slot, damage }: FoundSlot, status: KeyStatus): KeyReport {
  return { id, status, slot, damage };
}

function statusOf({ slot }: FoundSlot, { sealed }: StoredConfig, { masterKey, opened }: Unlocked): KeyStatus {
  if (slot === undefined || !isSealed(slot, sealed, masterKey)) return "foreign";
  return slot.key === opened.key ? "opened" : "sealed";
}

/** True when there is a key besides `id` that somebody with the master key made. */
function hasSound(
  slots: readonly FoundSlot[],
  id: string,
  stored: StoredConfig,
  unlocked: Unlocked,
): boolean {
  return slots.some((found) => found.id !== id && statusOf(found, stored, unlocked) !== "foreign");
}

function chooseSlot(store: ObjectStore, slots: readonly FoundSlot[], wanted: string): FoundSlot {
  const matching = slots.filter(({ id }) => wanted !== "" && id.startsWith(wanted));
  if (matching.length === 1) return matching[0]!;
  if (matching.length === 0) {
    const message = `There is no key "${wanted}" in ${store.location}; blockhaul key list shows them`;
    throw new AppError("notFound", "E_NO_KEY", message);
  }
  throw new AppError(
    "usage",
    "E_KEY_AMBIGUOUS",
    `${matching.length} keys begin with "${wanted}"; write more of it`,
  );
}

function lastKeyError(store: ObjectStore, id: string): AppError {
  return new AppError(
    "usage",
    "E_LAST_KEY",
    `The key ${id} is the last one of ${store.location}, without which nobody can read it; add another first`,
    { key: id },
  );
}
