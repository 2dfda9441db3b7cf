import { AppError } from "../errors.ts";
import { isOptionError, nameOf, Option, OptionReplyType } from "./constants.ts";
import { decodeOptionReplyHeader, encodeOption, OPTION_REPLY_HEADER_SIZE } from "./options.ts";
import { lostError, type Transport } from "./transport.ts";
import { displayText, protocolError } from "./wire.ts";
import type { NbdAddress } from "./uri.ts";

/** Longest data of one option reply that makes sense: two strings of 4096 bytes and their lengths. */
const REPLY_MAX = 2 * 4096 + 64;
/** Most bytes in all replies to one option; a list of 100,000 exports with ordinary names fits. */
const REPLIES_MAX = 8 * 1024 * 1024;

/** How a server answered an option. */
export type OptionOutcome =
  | { readonly ok: true; readonly replies: readonly OptionReply[] }
  | { readonly ok: false; readonly error: number; readonly text: string };

export interface OptionReply {
  readonly type: number;
  readonly data: Buffer;
}

/**
 * Sends an option and waits for its final reply.
 *
 * @throws AppError E_NBD_TLS_REQUIRED (usage), E_NBD_PROTOCOL; E_NBD_LOST when the server shuts down; what the
 *   transport died of.
 */
export async function askOption(
  transport: Transport,
  address: NbdAddress,
  option: number,
  data: Uint8Array = new Uint8Array(),
): Promise<OptionOutcome> {
  transport.send([encodeOption(option, data)]);
  const replies: OptionReply[] = [];
  for (let total = 0; ;) {
    const reply = await readReply(transport, option);
    if (reply.type === OptionReplyType.ACK) return { ok: true, replies };
    if (isOptionError(reply.type)) return failed(address, reply);
    replies.push(reply);
    total += OPTION_REPLY_HEADER_SIZE + reply.data.length;
    if (total > REPLIES_MAX) {
      throw protocolError(
        `NBD server of ${address.uri} gives an endless answer to ${nameOf(Option, option)}`,
      );
    }
  }
}

async function readReply(transport: Transport, option: number): Promise<OptionReply> {
  const size = OPTION_REPLY_HEADER_SIZE;
  const header = decodeOptionReplyHeader(await transport.receiver.read(size, size, "an option reply"));
  if (header.option !== option) {
    const [asked, got] = [nameOf(Option, option), nameOf(Option, header.option)];
    throw protocolError(`NBD server answered ${got} when it was asked ${asked}`);
  }
  const what = `a reply to ${nameOf(Option, option)}`;
  return { type: header.type, data: await transport.receiver.read(header.length, REPLY_MAX, what) };
}

function failed(address: NbdAddress, reply: OptionReply): OptionOutcome {
  const text = displayText(reply.data);
  if (reply.type === OptionReplyType.ERR_TLS_REQD) {
    throw new AppError(
      "usage",
      "E_NBD_TLS_REQUIRED",
      `NBD server of ${address.uri} wants TLS; write nbds in place of nbd`,
      { server: text },
    );
  }
  if (reply.type === OptionReplyType.ERR_SHUTDOWN) {
    throw lostError(`NBD server of ${address.uri} is shutting down`);
  }
  return { ok: false, error: reply.type, text };
}

/** A server's "no" that no fallback cures. */
export function refusedError(address: NbdAddress, option: number, outcome: OptionOutcome): AppError {
  if (outcome.ok)
    return protocolError(`NBD server of ${address.uri} answered ${nameOf(Option, option)} wrongly`);
  const why = `${nameOf(OptionReplyType, outcome.error)}${outcome.text === "" ? "" : ` (${outcome.text})`}`;
  return new AppError(
    "source",
    "E_NBD_REFUSED",
    `NBD server of ${address.uri} refused ${nameOf(Option, option)}: ${why}`,
  );
}
