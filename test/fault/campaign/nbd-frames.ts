const GREETING_SIZE = 18;
const OPTION_REPLY_SIZE = 20;
const SIMPLE_REPLY_SIZE = 16;
const CHUNK_HEADER_SIZE = 20;
const CHUNK_MAGIC = 0x668e33ef;
const OPT_GO = 7;
const REP_ACK = 1;
const OFFSET_DATA = 1;

/** One message of an NBD server. */
export interface NbdFrame {
  readonly bytes: Buffer;
  /** So many bytes at its start are protocol, of which no bit can change unnoticed; the rest is content. */
  readonly header: number;
  /** Of a reply in the transmission phase. */
  readonly cookie: bigint | undefined;
}

/**
 * Takes what an NBD server says apart into messages; knows just enough of the protocol: the handshake up to the
 * answer to GO, then structured replies, and simple ones without data.
 */
export class NbdFrames {
  #rest = Buffer.alloc(0);
  #greeted = false;
  #transmission = false;

  /** @returns the messages that are whole now. */
  push(bytes: Buffer): NbdFrame[] {
    this.#rest = Buffer.concat([this.#rest, bytes]);
    const frames: NbdFrame[] = [];
    for (let frame = this.#next(); frame !== undefined; frame = this.#next()) frames.push(frame);
    return frames;
  }

  #next(): NbdFrame | undefined {
    if (!this.#greeted) {
      const frame = this.#cut(GREETING_SIZE, 16);
      this.#greeted = frame !== undefined;
      return frame;
    }
    return this.#transmission ? this.#reply() : this.#optionReply();
  }

  #optionReply(): NbdFrame | undefined {
    if (this.#rest.length < OPTION_REPLY_SIZE) return undefined;
    const option = this.#rest.readUInt32BE(8);
    const type = this.#rest.readUInt32BE(12);
    const frame = this.#cut(OPTION_REPLY_SIZE + this.#rest.readUInt32BE(16), OPTION_REPLY_SIZE);
    if (frame !== undefined && option === OPT_GO && type === REP_ACK) this.#transmission = true;
    return frame;
  }

  #reply(): NbdFrame | undefined {
    if (this.#rest.length < SIMPLE_REPLY_SIZE) return undefined;
    if (this.#rest.readUInt32BE(0) !== CHUNK_MAGIC) {
      return this.#cut(SIMPLE_REPLY_SIZE, SIMPLE_REPLY_SIZE, this.#rest.readBigUInt64BE(8));
    }
    if (this.#rest.length < CHUNK_HEADER_SIZE) return undefined;
    const hasOffset = this.#rest.readUInt16BE(6) === OFFSET_DATA;
    return this.#cut(
      CHUNK_HEADER_SIZE + this.#rest.readUInt32BE(16),
      CHUNK_HEADER_SIZE + (hasOffset ? 8 : 0),
      this.#rest.readBigUInt64BE(8),
    );
  }

  #cut(size: number, header: number, cookie?: bigint): NbdFrame | undefined {
    if (this.#rest.length < size) return undefined;
    const bytes = this.#rest.subarray(0, size);
    this.#rest = this.#rest.subarray(size);
    return { bytes, header, cookie };
  }
}
