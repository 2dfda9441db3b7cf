import type { BlockSize } from "../../disk/disk.ts";
import { Command, CommandFlag, Errno, ExportFlag, nameOf } from "../constants.ts";
import type { Request } from "../messages.ts";
import type { Failure } from "./errno.ts";
import type { ReplyStyle } from "./handshake.ts";

/** What requests are measured against. */
export interface Terms {
  readonly size: number;
  readonly blockSize: BlockSize;
  /** ExportFlag bits that the client was told. */
  readonly flags: number;
  readonly style: ReplyStyle;
  readonly contexts: readonly unknown[];
}

/** Flags that a command may carry, next to FUA, which every command may where it was offered (proto.md). */
const FLAGS: Readonly<Record<number, number>> = {
  [Command.READ]: CommandFlag.DF,
  [Command.WRITE]: CommandFlag.PAYLOAD_LEN,
  [Command.FLUSH]: 0,
  [Command.TRIM]: 0,
  [Command.WRITE_ZEROES]: CommandFlag.NO_HOLE,
  [Command.BLOCK_STATUS]: CommandFlag.REQ_ONE,
};

/** The transmission flag without which a client must not send a command. READ and WRITE need none. */
const NEEDED: Readonly<Record<number, number>> = {
  [Command.FLUSH]: ExportFlag.SEND_FLUSH,
  [Command.TRIM]: ExportFlag.SEND_TRIM,
  [Command.WRITE_ZEROES]: ExportFlag.SEND_WRITE_ZEROES,
};

/** Bytes that follow the request's header, whether the request is a good one or not. */
export function payloadOf(request: Request, style: ReplyStyle): number {
  const announced =
    style === "extended" ? (request.flags & CommandFlag.PAYLOAD_LEN) !== 0 : request.type === Command.WRITE;
  return announced ? request.length : 0;
}

/**
 * Why a request is not carried out, or undefined for a good one. The connection goes on in either case
 * (proto.md, "Request types" and "Error values").
 */
export function refuse(request: Request, terms: Terms): Failure | undefined {
  return refuseKind(request, terms) ?? refusePlace(request, terms) ?? refuseLength(request, terms);
}

function refuseKind(request: Request, terms: Terms): Failure | undefined {
  const { type, flags } = request;
  const command = nameOf(Command, type);
  const known = FLAGS[type];
  if (known === undefined) return invalid(`No command ${command}`);
  const writes = type === Command.WRITE || type === Command.WRITE_ZEROES || type === Command.TRIM;
  if (writes && (terms.flags & ExportFlag.READ_ONLY) !== 0) {
    return { errno: Errno.EPERM, message: "The export is read-only" };
  }
  const needed = NEEDED[type] ?? 0;
  if ((terms.flags & needed) !== needed) return invalid(`${command} was not offered`);
  const fua = (terms.flags & ExportFlag.SEND_FUA) === 0 ? 0 : CommandFlag.FUA;
  const unknown = flags & ~(known | fua);
  if (unknown !== 0) return invalid(`${command} takes no flags 0x${unknown.toString(16)}`);
  if ((flags & CommandFlag.DF) !== 0 && terms.style === "simple") return invalid("DF was not offered");
  if (type === Command.WRITE && ((flags & CommandFlag.PAYLOAD_LEN) !== 0) !== (terms.style === "extended")) {
    return invalid("WRITE and extended headers go with PAYLOAD_LEN, others without");
  }
  if (type === Command.BLOCK_STATUS && terms.contexts.length === 0) {
    return invalid("No metadata context was selected");
  }
  return undefined;
}

function refusePlace(request: Request, terms: Terms): Failure | undefined {
  const { type, offset, length } = request;
  const { size, blockSize } = terms;
  if (type === Command.FLUSH) {
    return offset === 0 && length === 0 ? undefined : invalid("FLUSH takes no offset and no length");
  }
  const end = offset + length;
  if (end > size) {
    const message = `Bytes ${offset} to ${end} are not on an export of ${size} bytes`;
    const grows = type === Command.WRITE || type === Command.WRITE_ZEROES;
    return { errno: grows ? Errno.ENOSPC : Errno.EINVAL, message };
  }
  // The last block of a disk may be short.
  if (offset % blockSize.minimum !== 0 || (end % blockSize.minimum !== 0 && end !== size)) {
    return invalid(`Bytes ${offset} to ${end} are not whole blocks of ${blockSize.minimum} bytes`);
  }
  return undefined;
}

function refuseLength(request: Request, terms: Terms): Failure | undefined {
  const { type, length } = request;
  if (type === Command.BLOCK_STATUS && length === 0) return invalid("BLOCK_STATUS of 0 bytes");
  const payload = type === Command.READ || type === Command.WRITE;
  if (!payload || length <= terms.blockSize.maximum) return undefined;
  const message = `${length} bytes are more than the ${terms.blockSize.maximum} that one request may have`;
  // EOVERFLOW is for reads that a client could have had in fragments (proto.md, NBD_CMD_READ).
  const fragments = type === Command.READ && terms.style !== "simple";
  return { errno: fragments ? Errno.EOVERFLOW : Errno.EINVAL, message };
}

function invalid(message: string): Failure {
  return { errno: Errno.EINVAL, message };
}
