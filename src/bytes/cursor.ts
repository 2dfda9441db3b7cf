import { AppError } from "../errors.ts";

/**
 * Reads a byte string from front to back. Every read is checked against what is left, so a truncated or lying
 * input ends in one kind of error instead of garbage.
 */
export class ByteReader {
  readonly #bytes: Buffer;
  readonly #what: string;
  #at = 0;

  /** @param what names the input in errors: "layer 0190…", "manifest". The bytes are not copied. */
  constructor(bytes: Uint8Array, what: string) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#what = what;
  }

  get position(): number {
    return this.#at;
  }

  get remaining(): number {
    return this.#bytes.length - this.#at;
  }

  /** The next `length` bytes, a view. @throws AppError E_TRUNCATED (corrupt). */
  bytes(length: number): Buffer {
    if (length > this.remaining) {
      throw new AppError("corrupt", "E_TRUNCATED", `The ${this.#what} ends too early`, {
        position: this.#at,
        wanted: length,
        remaining: this.remaining,
      });
    }
    this.#at += length;
    return this.#bytes.subarray(this.#at - length, this.#at);
  }

  u8(): number {
    // Not through `bytes`: a view for each byte would cost most of the time of reading a layer.
    const byte = this.#bytes[this.#at];
    if (byte === undefined) return this.bytes(1)[0]!;
    this.#at += 1;
    return byte;
  }

  u16(): number {
    return this.bytes(2).readUInt16LE();
  }

  u32(): number {
    return this.bytes(4).readUInt32LE();
  }

  /** Little-endian u64 up to 2^53-1. @throws AppError E_TOO_LARGE (corrupt). */
  u64(): number {
    return this.#exact(this.bytes(8).readBigUInt64LE());
  }

  /** Unsigned LEB128 of at most 8 bytes, in its shortest form. @throws AppError E_VARINT, E_TOO_LARGE (corrupt). */
  varint(): number {
    let value = 0;
    let scale = 1;
    for (let count = 0; count < 8; count++) {
      const byte = this.u8();
      value += (byte & 0x7f) * scale;
      scale *= 128;
      if (byte < 0x80) {
        if (byte === 0 && count > 0) throw this.#bad("E_VARINT", "number is not in its shortest form");
        if (!Number.isSafeInteger(value)) throw this.#bad("E_TOO_LARGE", "number is past 2^53");
        return value;
      }
    }
    throw this.#bad("E_VARINT", "number is too long");
  }

  /** @throws AppError E_TRAILING (corrupt) when bytes are left. */
  end(): void {
    if (this.remaining > 0) throw this.#bad("E_TRAILING", "there are bytes after its end");
  }

  #exact(value: bigint): number {
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw this.#bad("E_TOO_LARGE", "number is past 2^53");
    return Number(value);
  }

  #bad(code: "E_VARINT" | "E_TOO_LARGE" | "E_TRAILING", why: string): AppError {
    return new AppError("corrupt", code, `The ${this.#what} is damaged: ${why}`, { position: this.#at });
  }
}

/** Builds a byte string from front to back, little-endian; grows by doubling. */
export class ByteWriter {
  #bytes: Buffer;
  #length = 0;

  constructor(capacity = 256) {
    this.#bytes = Buffer.allocUnsafe(capacity);
  }

  get length(): number {
    return this.#length;
  }

  bytes(value: Uint8Array): this {
    this.#room(value.length).set(value);
    return this;
  }

  u8(value: number): this {
    if (this.#length === this.#bytes.length) this.#grow(this.#length + 1);
    this.#bytes[this.#length++] = value;
    return this;
  }

  u16(value: number): this {
    this.#room(2).writeUInt16LE(value);
    return this;
  }

  u32(value: number): this {
    this.#room(4).writeUInt32LE(value);
    return this;
  }

  u64(value: number): this {
    this.#room(8).writeBigUInt64LE(BigInt(value));
    return this;
  }

  /** Unsigned LEB128. @param value a safe integer, 0 or more. */
  varint(value: number): this {
    let rest = value;
    while (rest >= 0x80) {
      this.u8((rest % 128) | 0x80);
      rest = Math.floor(rest / 128);
    }
    return this.u8(rest);
  }

  /** What was written so far: a copy that the caller owns. */
  finish(): Buffer {
    return Buffer.from(this.#bytes.subarray(0, this.#length));
  }

  #room(length: number): Buffer {
    const end = this.#length + length;
    if (end > this.#bytes.length) this.#grow(end);
    this.#length = end;
    return this.#bytes.subarray(end - length, end);
  }

  #grow(end: number): void {
    const grown = Buffer.allocUnsafe(Math.max(end, this.#bytes.length * 2));
    this.#bytes.copy(grown, 0, 0, this.#length);
    this.#bytes = grown;
  }
}
