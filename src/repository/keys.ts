import {
  createCipheriv,
  createDecipheriv,
  createHmac,
  hash,
  randomBytes,
  scrypt,
  timingSafeEqual,
} from "node:crypto";
import { promisify } from "node:util";
import { z } from "zod";
import { KiB, MiB } from "../bytes/size.ts";
import { AppError } from "../errors.ts";
import { digestText, shortText, timeText, uuid } from "./fields.ts";
import { keySlotKey } from "./names.ts";
import { encodeRecord, parseRecord } from "./record.ts";
import { deriveKey } from "./sealing.ts";

/** Bytes of a repository's master key. */
export const MASTER_KEY_SIZE = 32;

/** `keys/<id>.json` is never larger, in bytes. */
export const KEY_SLOT_SIZE_MAX = 16 * KiB;

/** What slots are written with: 128 MiB and about half a second. */
const WRITTEN = { n: 2 ** 17, r: 8, p: 1 } as const;

/**
 * scrypt asks for 128·n·r bytes. Whoever can write to the bucket chooses what a slot says, so that is bounded before it
 * is used; and a slot that is cheaper to guess than ours is not one of ours.
 */
const SCRYPT_MEMORY_MAX = 256 * MiB;

const NONCE_SIZE = 12;
const TAG_SIZE = 16;
const WRAPPED_SIZE = NONCE_SIZE + MASTER_KEY_SIZE + TAG_SIZE;
const CIPHER = "aes-256-gcm";

/** Behind the text that is sealed stand `seal` and the record's checksum. */
const SEALED_TAIL_SIZE = `,"seal":"${"0".repeat(64)}","sha256":"${"0".repeat(64)}"}\n`.length;

/** Text that goes to a terminal as it is: no control characters. */
const shownText = shortText.regex(/^\P{Cc}*$/u, "has control characters");

const scryptSchema = z
  .strictObject({
    n: z.literal([2 ** 17, 2 ** 18]),
    r: z.int().min(8).max(16),
    p: z.int().min(1).max(4),
    /** 16 to 64 bytes. */
    salt: z.string().regex(/^(?:[0-9a-f]{2}){16,64}$/, "not 16 to 64 bytes in lower-case hexadecimal"),
  })
  .refine(({ n, r }) => 128 * n * r <= SCRYPT_MEMORY_MAX, "asks for more than 256 MiB of memory");

const slotSchema = z
  .strictObject({
    format: z.literal(1),
    repository: uuid,
    key: uuid,
    createdAt: timeText,
    label: shownText,
    host: shownText,
    scrypt: scryptSchema,
    wrapped: z.string().regex(new RegExp(`^[0-9a-f]{${2 * WRAPPED_SIZE}}$`), `not ${WRAPPED_SIZE} bytes`),
    seal: digestText,
  })
  .readonly();

/** A way to a repository's master key: what `keys/<id>.json` says. */
export type KeySlot = z.infer<typeof slotSchema> & {
  /** The record's text that `seal` is over. */
  readonly sealedText: string;
};

/** What a slot belongs to. */
export interface SealedConfig {
  /** The repository's id. */
  readonly repository: string;
  /** SHA-256 of the stored `repository.json`, 32 bytes. */
  readonly digest: Uint8Array;
}

/** For people, in a slot: not secret, and no part of what opens it. */
export interface KeyNotes {
  readonly createdAt: string;
  readonly label: string;
  readonly host: string;
}

const derivePasswordKey = promisify<Uint8Array, Uint8Array, number, object, Buffer>(scrypt);

/** The AES-256 key that a password gives with a slot's parameters; takes 128·n·r bytes of memory and some time. */
async function passwordKey(password: Uint8Array, parameters: KeySlot["scrypt"]): Promise<Buffer> {
  const { n, r, p, salt } = parameters;
  const maxmem = 128 * r * (n + p + 2); // what OpenSSL counts
  return await derivePasswordKey(password, Buffer.from(salt, "hex"), 32, { N: n, r, p, maxmem });
}

/** Binds a wrapped master key to its repository and slot. */
function associated(repository: string, key: string): Buffer {
  return Buffer.from(`key\0${repository}\0${keySlotKey(key)}`, "utf8");
}

/** R14: nobody without the master key can make a slot, or a `repository.json`, that passes for another. */
function sealOf(config: SealedConfig, text: string, masterKey: Uint8Array): Buffer {
  const key = deriveKey(config.repository, masterKey, "key slot");
  return createHmac("sha256", key).update(config.digest).update(text, "utf8").digest();
}

/**
 * The bytes of a new slot.
 *
 * @param id its UUID. @param password any bytes, at least one.
 */
export async function encodeKeySlot(
  config: SealedConfig,
  id: string,
  notes: KeyNotes,
  masterKey: Uint8Array,
  password: Uint8Array,
): Promise<Buffer> {
  const parameters = { ...WRITTEN, salt: randomBytes(32).toString("hex") };
  const wrappingKey = await passwordKey(password, parameters);
  const nonce = randomBytes(NONCE_SIZE);
  const cipher = createCipheriv(CIPHER, wrappingKey, nonce, { authTagLength: TAG_SIZE });
  cipher.setAAD(associated(config.repository, id));
  const wrapped = Buffer.concat([nonce, cipher.update(masterKey), cipher.final(), cipher.getAuthTag()]);
  wrappingKey.fill(0);
  const { createdAt, label, host } = notes;
  const document = {
    format: 1,
    repository: config.repository,
    key: id,
    createdAt,
    label,
    host,
    scrypt: parameters,
    wrapped: wrapped.toString("hex"),
  };
  const seal = sealOf(config, JSON.stringify(document), masterKey).toString("hex");
  return encodeRecord({ ...document, seal });
}

/**
 * The slot in the bytes of `keys/<id>.json`; its parameters are within bounds, its seal is not checked yet.
 *
 * @throws AppError (corrupt) E_RECORD; E_MISPLACED: a slot of another repository, or under another name.
 */
export function decodeKeySlot(bytes: Uint8Array, repository: string, id: string): KeySlot {
  const what = `key ${keySlotKey(id)}`;
  const slot = parseRecord(slotSchema, bytes, what);
  if (slot.repository !== repository || slot.key !== id) {
    throw new AppError("corrupt", "E_MISPLACED", `The ${what} belongs to another place`, { what });
  }
  const text = Buffer.from(bytes).toString("utf8");
  if (!text.slice(-SEALED_TAIL_SIZE).startsWith(',"seal":')) {
    throw new AppError("corrupt", "E_RECORD", `The ${what} is damaged: its seal is not its last field`, {
      what,
    });
  }
  return { ...slot, sealedText: `${text.slice(0, -SEALED_TAIL_SIZE)}}` };
}

/**
 * The master key, if the password opens the slot. Its seal is the caller's to check.
 *
 * @returns 32 bytes that are the caller's to overwrite; undefined for another password, or a slot that was changed,
 *   which nobody can tell apart.
 */
export async function unwrapMasterKey(slot: KeySlot, password: Uint8Array): Promise<Buffer | undefined> {
  const wrappingKey = await passwordKey(password, slot.scrypt);
  const wrapped = Buffer.from(slot.wrapped, "hex");
  const decipher = createDecipheriv(CIPHER, wrappingKey, wrapped.subarray(0, NONCE_SIZE), {
    authTagLength: TAG_SIZE,
  });
  decipher.setAAD(associated(slot.repository, slot.key));
  decipher.setAuthTag(wrapped.subarray(-TAG_SIZE));
  const masterKey = decipher.update(wrapped.subarray(NONCE_SIZE, -TAG_SIZE));
  wrappingKey.fill(0);
  try {
    decipher.final();
    return masterKey;
  } catch {
    masterKey.fill(0);
    return undefined;
  }
}

/** True when somebody who has the master key made this slot, for this very `repository.json` (R14). */
export function isSealed(slot: KeySlot, config: SealedConfig, masterKey: Uint8Array): boolean {
  return timingSafeEqual(sealOf(config, slot.sealedText, masterKey), Buffer.from(slot.seal, "hex"));
}

/** A new repository's master key, 32 bytes; the caller's to overwrite. */
export function newMasterKey(): Buffer {
  return randomBytes(MASTER_KEY_SIZE);
}

/** What slots are sealed to. @param bytes of `repository.json` as stored. */
export function sealedConfig(repository: string, bytes: Uint8Array): SealedConfig {
  return { repository, digest: hash("sha256", bytes, "buffer") };
}
