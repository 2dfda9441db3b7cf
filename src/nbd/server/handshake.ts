import { AppError, hasCode, messageOf } from "../../errors.ts";
import {
  ClientFlag,
  EXPORT_NAME_PADDING,
  ExportFlag,
  HandshakeFlag,
  InfoType,
  nameOf,
  Option,
  OptionReplyType,
} from "../constants.ts";
import {
  CLIENT_FLAGS_SIZE,
  decodeClientFlags,
  decodeInfoRequest,
  decodeMetaContextRequest,
  decodeOptionHeader,
  encodeExportEntry,
  encodeExportFacts,
  encodeGreeting,
  encodeInfo,
  encodeMetaContext,
  encodeOptionReply,
  OPTION_HEADER_SIZE,
  type Info,
} from "../options.ts";
import { decodeString, protocolError } from "../wire.ts";
import { listContexts, selectContexts, type SelectedContext } from "./meta-contexts.ts";
import { Peer } from "./peer.ts";
import { isWritable, type ServedDisk } from "./served-disk.ts";
import { secure, type ServerTls } from "./tls.ts";

/** Most bytes of an option that are kept: 4096 for an export's name, the rest for a few dozen contexts. */
const OPTION_DATA_MAX = 64 * 1024;

/** How replies are framed, from the oldest to the newest way. */
export type ReplyStyle = "simple" | "structured" | "extended";

/** What both sides agreed on before transmission. */
export interface Agreement {
  readonly exportName: string;
  readonly disk: ServedDisk;
  /** ExportFlag bits, as the client was told. */
  readonly flags: number;
  readonly style: ReplyStyle;
  readonly contexts: readonly SelectedContext[];
}

/** What remains of the handshake: how to go on talking, about what. */
export interface Welcome {
  /** Another one than before when TLS was started. */
  readonly peer: Peer;
  readonly agreement: Agreement;
}

/**
 * The server's side of fixed newstyle negotiation (proto.md). Its time limit is the caller's, who destroys the
 * socket.
 *
 * @returns undefined when the client said goodbye by ABORT.
 * @throws AppError E_NBD_PROTOCOL (source), or why the connection is gone.
 */
export async function welcome(
  peer: Peer,
  exports: ReadonlyMap<string, ServedDisk>,
  tls: ServerTls | undefined,
): Promise<Welcome | undefined> {
  return await new Handshake(peer, exports, tls).run();
}

/** Handling an option ended the negotiation, or did not. */
type Step = "goOn" | "aborted" | Agreement;

class Handshake {
  #peer: Peer;
  readonly #exports: ReadonlyMap<string, ServedDisk>;
  /**
   * Still to be started before anything else, so that nothing agreed before can be left over from clear text;
   * undefined without TLS, and after it was started.
   */
  #tlsRequired: ServerTls | undefined;
  readonly #tlsOffered: boolean;
  #padding = true;
  #style: ReplyStyle = "simple";
  /** The last SET_META_CONTEXT that succeeded, which counts only for the same export. */
  #selected: { readonly exportName: string; readonly contexts: readonly SelectedContext[] } | undefined;

  constructor(peer: Peer, exports: ReadonlyMap<string, ServedDisk>, tls: ServerTls | undefined) {
    this.#peer = peer;
    this.#exports = exports;
    this.#tlsRequired = tls;
    this.#tlsOffered = tls !== undefined;
  }

  async run(): Promise<Welcome | undefined> {
    await this.#peer.send(encodeGreeting(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES));
    const flags = decodeClientFlags(await this.#peer.read(CLIENT_FLAGS_SIZE));
    if ((flags & ~(ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES)) !== 0) {
      throw protocolError(`NBD client answered with unknown flags 0x${(flags >>> 0).toString(16)}`);
    }
    this.#padding = (flags & ClientFlag.NO_ZEROES) === 0;
    for (;;) {
      const { option, length } = decodeOptionHeader(await this.#peer.read(OPTION_HEADER_SIZE));
      if (length > OPTION_DATA_MAX) {
        await this.#peer.skip(length);
        if (option === Option.EXPORT_NAME)
          throw protocolError("NBD client asked for a name that is too long");
        await this.#refuse(option, OptionReplyType.ERR_TOO_BIG, `At most ${OPTION_DATA_MAX} bytes of data`);
        continue;
      }
      const step = await this.#handle(option, await this.#peer.read(length));
      if (step === "aborted") return undefined;
      if (step !== "goOn") return { peer: this.#peer, agreement: step };
    }
  }

  async #handle(option: number, data: Buffer): Promise<Step> {
    if (this.#tlsRequired !== undefined && option !== Option.STARTTLS && option !== Option.ABORT) {
      if (option === Option.EXPORT_NAME)
        throw protocolError("NBD client did not start TLS, which is required");
      return await this.#refuse(
        option,
        OptionReplyType.ERR_TLS_REQD,
        "This server serves nothing without TLS",
      );
    }
    try {
      return await this.#obey(option, data);
    } catch (error) {
      // EXPORT_NAME has no error reply: the session ends (proto.md, NBD_OPT_EXPORT_NAME).
      if (!hasCode(error, "E_NBD_OPTION") || option === Option.EXPORT_NAME) throw error;
      return await this.#refuse(option, Number(error.context["type"]), error.message);
    }
  }

  async #obey(option: number, data: Buffer): Promise<Step> {
    switch (option) {
      case Option.EXPORT_NAME:
        return await this.#exportName(data);
      case Option.ABORT:
        await this.#acknowledge(option);
        return "aborted";
      case Option.LIST:
        expectNoData(data);
        for (const [name, disk] of this.#exports) {
          const entry = encodeExportEntry({ name, description: disk.description ?? "" });
          await this.#reply(option, OptionReplyType.SERVER, entry);
        }
        return await this.#acknowledge(option);
      case Option.STARTTLS:
        return await this.#startTls(option, data);
      case Option.INFO:
      case Option.GO:
        return await this.#go(option, data);
      case Option.STRUCTURED_REPLY:
        expectNoData(data);
        if (this.#style === "extended") {
          throw refusal(OptionReplyType.ERR_EXT_HEADER_REQD, "Extended headers are in use already");
        }
        this.#style = "structured";
        return await this.#acknowledge(option);
      case Option.EXTENDED_HEADERS:
        expectNoData(data);
        this.#style = "extended";
        return await this.#acknowledge(option);
      case Option.LIST_META_CONTEXT:
      case Option.SET_META_CONTEXT:
        return await this.#metaContexts(option, data);
      default:
        throw refusal(OptionReplyType.ERR_UNSUP, `No option ${nameOf(Option, option)}`);
    }
  }

  async #exportName(data: Buffer): Promise<Step> {
    if (this.#style === "extended")
      throw protocolError("NBD client asked for extended headers, then EXPORT_NAME");
    const agreement = this.#agree(decodeString(data, "an export name"));
    const facts = encodeExportFacts({ size: agreement.disk.size, flags: agreement.flags });
    if (this.#padding) await this.#peer.send(facts, Buffer.alloc(EXPORT_NAME_PADDING));
    else await this.#peer.send(facts);
    return agreement;
  }

  async #startTls(option: number, data: Buffer): Promise<Step> {
    expectNoData(data);
    if (!this.#tlsOffered) throw refusal(OptionReplyType.ERR_POLICY, "This server has no TLS");
    const tls = this.#tlsRequired;
    if (tls === undefined) throw refusal(OptionReplyType.ERR_INVALID, "TLS was started already");
    const socket = this.#peer.release();
    // Whatever came in clear text after STARTTLS could be somebody's in between, to be taken for the client's.
    if (this.#peer.buffered > 0) throw protocolError("NBD client sent more after STARTTLS than TLS");
    const acknowledged = this.#acknowledge(option);
    const [secured] = await Promise.all([secure(socket, tls), acknowledged]);
    this.#peer = new Peer(secured);
    this.#tlsRequired = undefined;
    return "goOn";
  }

  async #go(option: number, data: Buffer): Promise<Step> {
    const { exportName, infos } = decoded(() => decodeInfoRequest(data));
    const agreement = this.#agree(exportName);
    const { disk, flags } = agreement;
    const wanted = new Set(infos);
    const answers: Info[] = [{ type: InfoType.EXPORT, size: disk.size, flags }];
    if (wanted.has(InfoType.NAME)) answers.push({ type: InfoType.NAME, name: agreement.exportName });
    if (wanted.has(InfoType.DESCRIPTION) && disk.description !== undefined) {
      answers.push({ type: InfoType.DESCRIPTION, description: disk.description });
    }
    if (wanted.has(InfoType.BLOCK_SIZE))
      answers.push({ type: InfoType.BLOCK_SIZE, blockSize: disk.blockSize });
    for (const info of answers) await this.#reply(option, OptionReplyType.INFO, encodeInfo(info));
    await this.#acknowledge(option);
    return option === Option.GO ? agreement : "goOn";
  }

  async #metaContexts(option: number, data: Buffer): Promise<Step> {
    const setting = option === Option.SET_META_CONTEXT;
    if (setting) this.#selected = undefined; // also when this one fails
    if (this.#style === "simple") {
      throw refusal(OptionReplyType.ERR_INVALID, "Metadata contexts need structured replies first");
    }
    const request = decoded(() => decodeMetaContextRequest(data));
    const [exportName, disk] = this.#find(request.exportName);
    const contexts = setting ? selectContexts(disk, request.queries) : listContexts(disk, request.queries);
    if (setting) this.#selected = { exportName, contexts };
    for (const { id, name } of contexts) {
      const context = encodeMetaContext({ id: setting ? id : 0, name });
      await this.#reply(option, OptionReplyType.META_CONTEXT, context);
    }
    return await this.#acknowledge(option);
  }

  /** "" is the default export: the one of that name, or the only one there is. */
  #find(asked: string): readonly [string, ServedDisk] {
    const disk = this.#exports.get(asked);
    if (disk !== undefined) return [asked, disk];
    const [only, ...others] = this.#exports;
    if (asked === "" && only !== undefined && others.length === 0) return only;
    throw refusal(OptionReplyType.ERR_UNKNOWN, `There is no export "${asked}"`);
  }

  #agree(asked: string): Agreement {
    const [exportName, disk] = this.#find(asked);
    const contexts = this.#selected?.exportName === exportName ? this.#selected.contexts : [];
    return { exportName, disk, contexts, style: this.#style, flags: exportFlags(disk, this.#style) };
  }

  async #acknowledge(option: number): Promise<"goOn"> {
    await this.#reply(option, OptionReplyType.ACK, new Uint8Array(0));
    return "goOn";
  }

  async #refuse(option: number, type: number, why: string): Promise<"goOn"> {
    await this.#reply(option, type, Buffer.from(why));
    return "goOn";
  }

  async #reply(option: number, type: number, data: Uint8Array): Promise<void> {
    await this.#peer.send(encodeOptionReply(option, type, data));
  }
}

/** An option that cannot be granted: the client gets the type and the text, and may go on. */
function refusal(type: number, message: string, cause?: unknown): AppError {
  return new AppError("source", "E_NBD_OPTION", message, { type }, cause);
}

/** Data that does not decode is the client's fault in this option, not the end of the session. */
function decoded<T>(decode: () => T): T {
  try {
    return decode();
  } catch (error) {
    throw refusal(OptionReplyType.ERR_INVALID, messageOf(error), error);
  }
}

function expectNoData(data: Buffer): void {
  if (data.length > 0) throw refusal(OptionReplyType.ERR_INVALID, "The option takes no data");
}

/** Transmission flags. Every connection sees the one disk without a cache in between: CAN_MULTI_CONN. */
function exportFlags(disk: ServedDisk, style: ReplyStyle): number {
  let flags = ExportFlag.HAS_FLAGS | ExportFlag.CAN_MULTI_CONN;
  if (style !== "simple") flags |= ExportFlag.SEND_DF;
  if (!isWritable(disk)) return flags | ExportFlag.READ_ONLY;
  if (disk.flush !== undefined) flags |= ExportFlag.SEND_FLUSH | ExportFlag.SEND_FUA;
  if (disk.zero !== undefined) flags |= ExportFlag.SEND_TRIM | ExportFlag.SEND_WRITE_ZEROES;
  return flags;
}
