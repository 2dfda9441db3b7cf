import { AppError, messageOf, systemCode } from "../../errors.ts";
import { Errno } from "../constants.ts";

/** How a request failed, as the client is told. */
export interface Failure {
  readonly errno: number;
  /** For people; only structured and extended replies carry it. */
  readonly message: string;
}

const BY_SYSTEM_CODE: Readonly<Record<string, number>> = {
  ENOSPC: Errno.ENOSPC,
  EDQUOT: Errno.ENOSPC,
  EFBIG: Errno.ENOSPC,
  EPERM: Errno.EPERM,
  EACCES: Errno.EPERM,
  EROFS: Errno.EPERM,
  ENOMEM: Errno.ENOMEM,
};

/**
 * The one place where what a disk throws becomes an NBD error (proto.md, "Error values"). What has no number of
 * its own is EIO.
 */
export function failureOf(error: unknown): Failure {
  const message = messageOf(error);
  if (error instanceof AppError) {
    if (error.kind === "full") return { errno: Errno.ENOSPC, message };
    if (error.kind === "credentials") return { errno: Errno.EPERM, message };
    if (error.kind === "cancelled") return { errno: Errno.ESHUTDOWN, message };
  }
  return { errno: BY_SYSTEM_CODE[systemCode(error) ?? ""] ?? Errno.EIO, message };
}
