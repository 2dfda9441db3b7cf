/**
 * The numbers of the NBD protocol, named as proto.md names them without their common prefix: `Option.GO` is
 * NBD_OPT_GO. Extended headers stand in proto.md's branch extension-ext-header.
 */

/** First eight bytes a server sends, "NBDMAGIC" (proto.md, "Newstyle negotiation"). */
export const INIT_PASSWD = 0x4e42444d41474943n;
/** "IHAVEOPT": second half of the server's greeting, and first field of each option request. */
export const OPTION_MAGIC = 0x49484156454f5054n;
/** Second half of an oldstyle server's greeting (proto.md, "Oldstyle negotiation"). */
export const OLDSTYLE_MAGIC = 0x00420281861253n;
export const OPTION_REPLY_MAGIC = 0x0003e889045565a9n;
export const REQUEST_MAGIC = 0x25609513;
export const EXTENDED_REQUEST_MAGIC = 0x21e41c71;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;
export const EXTENDED_REPLY_MAGIC = 0x6e8a278c;

/** IANA's port for NBD (uri.md, "NBD URI authority"). */
export const DEFAULT_PORT = 10_809;
/** Most bytes in any string: export names, contexts, error messages (proto.md, "Conventions"). */
export const STRING_MAX = 4096;
/** Zeros after the answer to EXPORT_NAME unless NO_ZEROES was negotiated. */
export const EXPORT_NAME_PADDING = 124;
/** Most extents a server SHOULD send in one block status chunk (proto.md, NBD_REPLY_TYPE_BLOCK_STATUS). */
export const STATUS_EXTENTS_MAX = 2 ** 20;
/** Size constraints where the server names none (proto.md, "Size constraints"), in bytes. */
export const DEFAULT_BLOCK_SIZE = { minimum: 1, preferred: 4096, maximum: 2 ** 25 } as const;
/** The largest minimum block size a server may advertise, in bytes (proto.md, "Size constraints"). */
export const MINIMUM_BLOCK_MAX = 2 ** 16;

/** NBD_FLAG_*: server's handshake flags, bits of a u16. */
export const HandshakeFlag = { FIXED_NEWSTYLE: 1 << 0, NO_ZEROES: 1 << 1 } as const;

/** NBD_FLAG_C_*: client's answer, bits of a u32. */
export const ClientFlag = { FIXED_NEWSTYLE: 1 << 0, NO_ZEROES: 1 << 1 } as const;

/** NBD_FLAG_*: transmission flags of an export, bits of a u16. */
export const ExportFlag = {
  HAS_FLAGS: 1 << 0,
  READ_ONLY: 1 << 1,
  SEND_FLUSH: 1 << 2,
  SEND_FUA: 1 << 3,
  ROTATIONAL: 1 << 4,
  SEND_TRIM: 1 << 5,
  SEND_WRITE_ZEROES: 1 << 6,
  SEND_DF: 1 << 7,
  CAN_MULTI_CONN: 1 << 8,
  SEND_RESIZE: 1 << 9,
  SEND_CACHE: 1 << 10,
  SEND_FAST_ZERO: 1 << 11,
  BLOCK_STATUS_PAYLOAD: 1 << 12,
} as const;

/** NBD_OPT_* */
export const Option = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  PEEK_EXPORT: 4,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
} as const;

/** NBD_REP_*; errors have bit 31 set. */
export const OptionReplyType = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  ERR_UNSUP: 0x8000_0001,
  ERR_POLICY: 0x8000_0002,
  ERR_INVALID: 0x8000_0003,
  ERR_PLATFORM: 0x8000_0004,
  ERR_TLS_REQD: 0x8000_0005,
  ERR_UNKNOWN: 0x8000_0006,
  ERR_SHUTDOWN: 0x8000_0007,
  ERR_BLOCK_SIZE_REQD: 0x8000_0008,
  ERR_TOO_BIG: 0x8000_0009,
  ERR_EXT_HEADER_REQD: 0x8000_000a,
} as const;

/** True for NBD_REP_ERR_*, known or not. */
export function isOptionError(type: number): boolean {
  return type >= 0x8000_0000;
}

/** NBD_INFO_* */
export const InfoType = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const;

/** NBD_CMD_* */
export const Command = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
  RESIZE: 8,
} as const;

/** NBD_CMD_FLAG_*, bits of a u16. */
export const CommandFlag = {
  FUA: 1 << 0,
  NO_HOLE: 1 << 1,
  DF: 1 << 2,
  REQ_ONE: 1 << 3,
  FAST_ZERO: 1 << 4,
  PAYLOAD_LEN: 1 << 5,
} as const;

/** NBD_REPLY_FLAG_*, bits of a u16. */
export const ReplyFlag = { DONE: 1 << 0 } as const;

/** NBD_REPLY_TYPE_*; errors have bit 15 set. */
export const ChunkType = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  BLOCK_STATUS: 5,
  BLOCK_STATUS_EXT: 6,
  ERROR: 0x8001,
  ERROR_OFFSET: 0x8002,
} as const;

/** True for NBD_REPLY_TYPE_ERROR*, known or not. */
export function isErrorChunk(type: number): boolean {
  return type >= 0x8000;
}

/** NBD_STATE_*: flags of `base:allocation`, bits of a u32. */
export const AllocationFlag = { HOLE: 1 << 0, ZERO: 1 << 1 } as const;

/** Bit of every `qemu:dirty-bitmap:NAME` context: the extent is dirty (QEMU, docs/interop/nbd.rst). */
export const DIRTY_FLAG = 1;

/** Metadata contexts that this program knows, and the prefix of the one per QEMU bitmap. */
export const Context = {
  ALLOCATION: "base:allocation",
  ALLOCATION_DEPTH: "qemu:allocation-depth",
  DIRTY_BITMAP: "qemu:dirty-bitmap:",
} as const;

/** NBD_E*: the error values of a reply (proto.md, "Error values"). */
export const Errno = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

/** For messages: "READ", or "unknown (0x63)" for a value a peer made up. */
export function nameOf(table: Readonly<Record<string, number>>, value: number): string {
  const name = Object.keys(table).find((key) => table[key] === value);
  return name ?? `unknown (0x${value.toString(16)})`;
}
