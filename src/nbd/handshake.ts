import type { BlockSize } from "../disk/disk.ts";
import { AppError, hasCode } from "../errors.ts";
import {
  ClientFlag,
  DEFAULT_BLOCK_SIZE,
  EXPORT_NAME_PADDING,
  HandshakeFlag,
  InfoType,
  MINIMUM_BLOCK_MAX,
  Option,
  OptionReplyType,
} from "./constants.ts";
import { askOption, refusedError } from "./option-exchange.ts";
import {
  decodeExportEntry,
  decodeExportFacts,
  decodeGreeting,
  decodeInfo,
  decodeMetaContext,
  encodeClientFlags,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
  EXPORT_FACTS_SIZE,
  GREETING_SIZE,
  type ExportEntry,
} from "./options.ts";
import { tlsOptions } from "./tls.ts";
import { lostError, type Transport } from "./transport.ts";
import { encodeString, protocolError } from "./wire.ts";
import type { NbdAddress } from "./uri.ts";

/** What both sides agreed on; holds for one connection. */
export interface Negotiated {
  /** Bytes. */
  readonly size: number;
  /** ExportFlag bits. */
  readonly flags: number;
  readonly blockSize: BlockSize;
  /** The server's words on the export; empty when it has none. */
  readonly description: string;
  readonly structured: boolean;
  /** Implies `structured`. */
  readonly extended: boolean;
  /** Names of the selected metadata contexts by their id on this connection. */
  readonly contexts: ReadonlyMap<number, string>;
}

/** The most contexts a server may have us keep. */
const CONTEXTS_MAX = 1000;

/**
 * The client's side of the handshake, from the greeting on (proto.md, "Handshake"). The methods follow each
 * other: `greet`, then at most one of `go`, `list` as the last.
 *
 * It has no deadline of its own: who calls destroys the transport when it takes too long.
 */
export class Handshake {
  readonly #transport: Transport;
  readonly #address: NbdAddress;
  #flags = 0;
  #encrypted = false;
  #structured = false;
  #extended = false;
  #contexts: ReadonlyMap<number, string> = new Map();

  constructor(transport: Transport, address: NbdAddress) {
    this.#transport = transport;
    this.#address = address;
  }

  /** A server that leaves right after this became true may not have accepted our certificate (TLS 1.3). */
  get encrypted(): boolean {
    return this.#encrypted;
  }

  /**
   * Greets, and encrypts when the address says so.
   *
   * @throws AppError E_NBD_PROTOCOL for an oldstyle or foreign server; E_NBD_NO_TLS_OFFER (credentials): nothing
   *   goes out unencrypted then; E_NBD_TLS, E_NBD_TLS_FILES.
   */
  async greet(signal: AbortSignal): Promise<void> {
    const greeting = await this.#transport.receiver.read(GREETING_SIZE, GREETING_SIZE, "a greeting");
    this.#flags = decodeGreeting(greeting) & (HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES);
    let answer = 0;
    if (this.#has(HandshakeFlag.FIXED_NEWSTYLE)) answer |= ClientFlag.FIXED_NEWSTYLE;
    if (this.#has(HandshakeFlag.NO_ZEROES)) answer |= ClientFlag.NO_ZEROES;
    this.#transport.send([encodeClientFlags(answer)]);
    if (!this.#address.tls) return;
    const options = await tlsOptions(this.#address);
    const consent = this.#has(HandshakeFlag.FIXED_NEWSTYLE) && (await this.#ask(Option.STARTTLS)).ok;
    if (!consent) {
      throw new AppError(
        "credentials",
        "E_NBD_NO_TLS_OFFER",
        `NBD server of ${this.#address.uri} does not offer TLS; let it, or write nbd in place of nbds to do without`,
      );
    }
    await this.#transport.startTls(options, signal);
    this.#encrypted = true;
  }

  /** Extended headers where the server has them, else structured replies where it has those. */
  async negotiateReplies(): Promise<void> {
    if (!this.#has(HandshakeFlag.FIXED_NEWSTYLE)) return;
    this.#extended = (await this.#ask(Option.EXTENDED_HEADERS)).ok;
    this.#structured = this.#extended || (await this.#ask(Option.STRUCTURED_REPLY)).ok;
  }

  /** Selects those of the contexts that the server has. @returns the names it selected. @throws as `go`. */
  async selectContexts(queries: readonly string[]): Promise<readonly string[]> {
    if (!this.#structured || queries.length === 0) return [];
    const found = await this.#metaContexts(Option.SET_META_CONTEXT, queries);
    if (new Set(found.map(({ id }) => id)).size !== found.length) {
      throw protocolError(`NBD server of ${this.#address.uri} gives one id to several metadata contexts`);
    }
    const asked = found.filter(({ name }) => queries.includes(name));
    if (asked.length !== found.length || new Set(asked.map(({ name }) => name)).size !== asked.length) {
      throw protocolError(`NBD server of ${this.#address.uri} selected metadata contexts nobody asked for`);
    }
    this.#contexts = new Map(found.map(({ id, name }) => [id, name]));
    return [...this.#contexts.values()];
  }

  /** Names of all contexts that the export offers. */
  async listContexts(): Promise<readonly string[]> {
    if (!this.#structured) return [];
    const found = await this.#metaContexts(Option.LIST_META_CONTEXT, []);
    return found.map(({ name }) => name);
  }

  async #metaContexts(option: number, queries: readonly string[]): Promise<{ id: number; name: string }[]> {
    const data = encodeMetaContextRequest({ exportName: this.#address.exportName, queries });
    const outcome = await this.#ask(option, data);
    if (!outcome.ok && outcome.error === OptionReplyType.ERR_UNKNOWN) throw await this.#unknownExport();
    if (!outcome.ok) return [];
    if (outcome.replies.length > CONTEXTS_MAX) {
      throw protocolError(
        `NBD server of ${this.#address.uri} has more than ${CONTEXTS_MAX} metadata contexts`,
      );
    }
    return outcome.replies.map(({ type, data: reply }) => {
      if (type === OptionReplyType.META_CONTEXT) return decodeMetaContext(reply);
      throw refusedError(this.#address, option, outcome);
    });
  }

  /** @throws AppError E_NBD_REFUSED when the server does not tell. */
  async list(): Promise<ExportEntry[]> {
    if (!this.#has(HandshakeFlag.FIXED_NEWSTYLE)) throw this.#needsFixed("list its exports");
    const outcome = await this.#ask(Option.LIST);
    if (!outcome.ok) throw refusedError(this.#address, Option.LIST, outcome);
    return outcome.replies.map(({ type, data }) => {
      if (type === OptionReplyType.SERVER) return decodeExportEntry(data);
      throw refusedError(this.#address, Option.LIST, outcome);
    });
  }

  /**
   * Enters the transmission phase.
   *
   * @throws AppError E_NBD_EXPORT (notFound) that lists the exports there are; E_NBD_REFUSED.
   */
  async go(): Promise<Negotiated> {
    if (!this.#has(HandshakeFlag.FIXED_NEWSTYLE)) return this.#exportName();
    const infos = [InfoType.BLOCK_SIZE, InfoType.DESCRIPTION];
    const { exportName } = this.#address;
    const outcome = await this.#ask(Option.GO, encodeInfoRequest({ exportName, infos }));
    if (outcome.ok) return this.#negotiated(outcome.replies);
    if (outcome.error === OptionReplyType.ERR_UNSUP) return this.#exportName();
    if (outcome.error === OptionReplyType.ERR_UNKNOWN) throw await this.#unknownExport();
    throw refusedError(this.#address, Option.GO, outcome);
  }

  /** Leaves in the way that the protocol asks for. */
  async abort(): Promise<void> {
    if (this.#has(HandshakeFlag.FIXED_NEWSTYLE))
      this.#transport.send([encodeOption(Option.ABORT, Buffer.alloc(0))]);
    await this.#transport.end();
  }

  #negotiated(replies: readonly { type: number; data: Buffer }[]): Negotiated {
    let facts: { size: number; flags: number } | undefined;
    let blockSize: BlockSize = DEFAULT_BLOCK_SIZE;
    let description = "";
    for (const { type, data } of replies) {
      if (type !== OptionReplyType.INFO) continue;
      const info = decodeInfo(data);
      if (info.type === InfoType.EXPORT) facts = { size: info.size, flags: info.flags };
      if (info.type === InfoType.BLOCK_SIZE) blockSize = checkedBlockSize(this.#address, info.blockSize);
      if (info.type === InfoType.DESCRIPTION) description = info.description;
    }
    if (facts === undefined)
      throw protocolError(`NBD server of ${this.#address.uri} did not tell the export's size`);
    return { ...facts, blockSize, description, ...this.#agreed() };
  }

  /** The only way in before GO was invented; a server that refuses can but close the connection. */
  async #exportName(): Promise<Negotiated> {
    const { exportName, uri } = this.#address;
    const padding = this.#has(HandshakeFlag.NO_ZEROES) ? 0 : EXPORT_NAME_PADDING;
    const size = EXPORT_FACTS_SIZE + padding;
    this.#transport.send([encodeOption(Option.EXPORT_NAME, encodeString(exportName, "export name"))]);
    try {
      const answer = await this.#transport.receiver.read(size, size, "an export's size");
      const facts = decodeExportFacts(answer.subarray(0, EXPORT_FACTS_SIZE));
      return { ...facts, blockSize: DEFAULT_BLOCK_SIZE, description: "", ...this.#agreed() };
    } catch (error) {
      if (!hasCode(error, "E_NBD_LOST")) throw error;
      throw lostError(
        `NBD server of ${uri} closed the connection; it may have no export "${exportName}"`,
        error,
      );
    }
  }

  #agreed(): Pick<Negotiated, "structured" | "extended" | "contexts"> {
    return { structured: this.#structured, extended: this.#extended, contexts: this.#contexts };
  }

  async #unknownExport(): Promise<AppError> {
    const { exportName, uri } = this.#address;
    const outcome = await this.#ask(Option.LIST);
    const names = outcome.ok ? outcome.replies.map(({ data }) => `"${decodeExportEntry(data).name}"`) : [];
    const shown = names.slice(0, 10).join(", ") + (names.length > 10 ? ` and ${names.length - 10} more` : "");
    const offer = names.length === 0 ? "and lists none" : `but ${shown}`;
    return new AppError(
      "notFound",
      "E_NBD_EXPORT",
      `NBD server of ${uri} has no export "${exportName}" ${offer}`,
    );
  }

  #needsFixed(what: string): AppError {
    return new AppError(
      "source",
      "E_NBD_OLD_SERVER",
      `NBD server of ${this.#address.uri} is too old to ${what} (no fixed newstyle)`,
    );
  }

  #has(flag: number): boolean {
    return (this.#flags & flag) !== 0;
  }

  #ask(option: number, data?: Uint8Array): ReturnType<typeof askOption> {
    return askOption(this.#transport, this.#address, option, data);
  }
}

/** proto.md, "Size constraints". @throws AppError E_NBD_PROTOCOL for constraints that nobody could honour. */
function checkedBlockSize(address: NbdAddress, told: BlockSize): BlockSize {
  const { minimum, preferred, maximum } = told;
  const fine =
    isPowerOfTwo(minimum) && minimum <= MINIMUM_BLOCK_MAX && isPowerOfTwo(preferred) && preferred >= minimum;
  if (fine && maximum >= minimum) return told;
  throw protocolError(
    `NBD server of ${address.uri} asks for impossible block sizes: ${minimum}, ${preferred}, ${maximum}`,
  );
}

function isPowerOfTwo(value: number): boolean {
  return value > 0 && (value & (value - 1)) === 0;
}
