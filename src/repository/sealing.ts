import { createCipheriv, createDecipheriv, createHmac, hkdfSync, randomBytes } from "node:crypto";
import { SEAL_OVERHEAD } from "../chunk/codec.ts";
import type { ChunkKeys } from "../chunk/keys.ts";
import { AppError } from "../errors.ts";
import { uuidBytes } from "./names.ts";

/** Objects that are sealed, as a whole or in pieces; also the labels of their derived keys. */
const SEALED_TYPES = [
  "directory",
  "index",
  "layer",
  "manifest",
  "run",
  "lease",
  "forward",
  "condemned",
  "damaged",
  "checked",
  "hold",
  "forgotten",
  "profile",
] as const;

export type SealedType = (typeof SEALED_TYPES)[number];

const NONCE_SIZE = 12;
const TAG_SIZE = 16;

/**
 * Seals and opens what a repository stores besides blobs (FORMAT.md, "Sealing").
 *
 * `key` is the object's key below the repository's prefix, for a piece of an object with "#" and its number
 * behind it: what was sealed for one place opens nowhere else (R15).
 */
export interface Sealer {
  readonly encrypted: boolean;
  /** For the workers that hash and seal chunks; undefined in a plain repository. */
  readonly chunkKeys: ChunkKeys | undefined;

  /** The bytes to store, `sealedLength` long; in a plain repository the very bytes that came in. */
  sealObject(type: SealedType, key: string, plain: Uint8Array): Buffer;

  /** @throws AppError E_SEAL (corrupt): changed, moved from elsewhere, or sealed with another key. */
  openObject(type: SealedType, key: string, sealed: Uint8Array): Buffer;
}

/** Bytes stored for `plainLength` bytes; the overhead of blobs and objects is the same. */
export function sealedLength(encrypted: boolean, plainLength: number): number {
  return encrypted ? plainLength + SEAL_OVERHEAD : plainLength;
}

/** The sealer of a repository without encryption: bytes pass through, as views on what came in. */
export function plainSealer(): Sealer {
  return {
    encrypted: false,
    chunkKeys: undefined,
    sealObject: (_type, _key, plain) => Buffer.from(plain.buffer, plain.byteOffset, plain.byteLength),
    openObject: (_type, _key, sealed) => Buffer.from(sealed.buffer, sealed.byteOffset, sealed.byteLength),
  };
}

/** A 32-byte key for one purpose: HKDF-SHA-256 (RFC 5869) with the repository id's 16 bytes as salt. */
export function deriveKey(repositoryId: string, masterKey: Uint8Array, label: string): Buffer {
  return Buffer.from(hkdfSync("sha256", masterKey, uuidBytes(repositoryId), `blockhaul v1 ${label}`, 32));
}

/**
 * The sealer of an encrypted repository.
 *
 * @param masterKey 32 random bytes; not kept.
 */
export function masterKeySealer(repositoryId: string, masterKey: Uint8Array): Sealer {
  const typeKeys = new Map<SealedType, Buffer>();
  for (const type of SEALED_TYPES) typeKeys.set(type, deriveKey(repositoryId, masterKey, type));

  // A key per object: random nonces need then be counted by nobody, however many writers there are.
  const objectKey = (type: SealedType, key: string): Buffer =>
    createHmac("sha256", typeKeys.get(type)!).update(key).digest();
  const associated = (type: SealedType, key: string): Buffer =>
    Buffer.from(`${type}\0${repositoryId}\0${key}`, "utf8");

  return {
    encrypted: true,
    chunkKeys: {
      id: deriveKey(repositoryId, masterKey, "chunk id"),
      blob: deriveKey(repositoryId, masterKey, "blob"),
    },
    sealObject(type, key, plain): Buffer {
      const nonce = randomBytes(NONCE_SIZE);
      const cipher = createCipheriv("aes-256-gcm", objectKey(type, key), nonce);
      cipher.setAAD(associated(type, key));
      return Buffer.concat([nonce, cipher.update(plain), cipher.final(), cipher.getAuthTag()]);
    },
    openObject(type, key, sealed): Buffer {
      if (sealed.length < SEAL_OVERHEAD) throw sealError(type, key, "it is too short");
      const end = sealed.length - TAG_SIZE;
      const nonce = sealed.subarray(0, NONCE_SIZE);
      const decipher = createDecipheriv("aes-256-gcm", objectKey(type, key), nonce, {
        authTagLength: TAG_SIZE,
      });
      decipher.setAAD(associated(type, key));
      decipher.setAuthTag(sealed.subarray(end));
      const plain = decipher.update(sealed.subarray(NONCE_SIZE, end));
      try {
        decipher.final();
      } catch (error) {
        throw sealError(type, key, "it was changed, moved, or sealed with another key", error);
      }
      return plain;
    },
  };
}

function sealError(type: SealedType, key: string, why: string, cause?: unknown): AppError {
  return new AppError("corrupt", "E_SEAL", `The ${type} ${key} does not open: ${why}`, { key }, cause);
}
