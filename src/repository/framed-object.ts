import { hash } from "node:crypto";
import { ByteReader, ByteWriter } from "../bytes/cursor.ts";
import { AppError, type ErrorCode } from "../errors.ts";
import type { Repository } from "./config.ts";
import type { SealedType } from "./sealing.ts";

/*
 * How index objects, forwards and ledgers are framed (FORMAT.md, "Index", "Forwards", "Checked").
 *
 *     0 magic, 8 B   8 u16 version   10 6 B zero
 *    16 body, sealed
 *       32 B SHA-256 of everything before
 */
const HEADER_SIZE = 16;
const RESERVED = Buffer.alloc(6);
const DIGEST_SIZE = 32;

/** A kind of framed object. */
export interface FramedKind {
  readonly type: SealedType;
  /** 8 ASCII characters. */
  readonly magic: string;
  readonly version: number;
  /** Of the error that a newer version is. */
  readonly versionCode: ErrorCode;
  /** The error for damage. @param what names the object. */
  damaged(what: string, why: string): AppError;
}

/** The stored form of a body. @param key of the object that the bytes are for. */
export function encodeFramed({ sealer }: Repository, kind: FramedKind, key: string, body: Buffer): Buffer {
  const magic = Buffer.from(kind.magic, "latin1");
  const header = new ByteWriter(HEADER_SIZE).bytes(magic).u16(kind.version).bytes(RESERVED).finish();
  const object = Buffer.concat([header, sealer.sealObject(kind.type, key, body)]);
  return Buffer.concat([object, hash("sha256", object, "buffer")]);
}

/**
 * The body of an object, its frame checked and its seal opened.
 *
 * @param what names the object in errors.
 * @throws AppError the kind's own, E_SEAL (corrupt); its `versionCode` (usage).
 */
export function openFramed(
  { sealer }: Repository,
  kind: FramedKind,
  key: string,
  bytes: Buffer,
  what: string,
): ByteReader {
  if (bytes.length < HEADER_SIZE + DIGEST_SIZE) throw kind.damaged(what, "it is too short");
  if (!digestMatches(bytes)) throw kind.damaged(what, "its checksum does not match");
  const object = bytes.subarray(0, -DIGEST_SIZE);
  const header = new ByteReader(object, what);
  const magic = header.bytes(kind.magic.length).toString("latin1");
  if (magic !== kind.magic) throw kind.damaged(what, "it does not begin like one");
  const version = header.u16();
  if (version !== kind.version) {
    const message = `The ${what} has version ${version}; update blockhaul to read it`;
    throw new AppError("usage", kind.versionCode, message);
  }
  if (!header.bytes(RESERVED.length).equals(RESERVED)) throw kind.damaged(what, "it does not begin like one");
  return new ByteReader(sealer.openObject(kind.type, key, object.subarray(HEADER_SIZE)), what);
}

/** Whether a framed object is as it was written, of whichever kind it is; needs no key. */
export function digestMatches(bytes: Buffer): boolean {
  if (bytes.length <= DIGEST_SIZE) return false;
  return hash("sha256", bytes.subarray(0, -DIGEST_SIZE), "buffer").equals(bytes.subarray(-DIGEST_SIZE));
}
