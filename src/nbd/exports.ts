import type { BlockSize } from "../disk/disk.ts";
import { AppError, hasCode } from "../errors.ts";
import { DEFAULT_TIMING, NbdConnection, withHandshake } from "./connection.ts";
import { ExportFlag } from "./constants.ts";
import type { NbdAddress } from "./uri.ts";

/** An export as the server lists it. */
export interface ListedExport {
  readonly name: string;
  /** The server's words, on one line. */
  readonly description?: string;
}

/** What an export can do; for people. */
export interface ExportDescription {
  /** Bytes. */
  readonly size: number;
  readonly description: string;
  readonly readOnly: boolean;
  readonly blockSize: BlockSize;
  /** Names of the metadata contexts on offer: "base:allocation", "qemu:dirty-bitmap:NAME". */
  readonly contexts: readonly string[];
  readonly structuredReplies: boolean;
  readonly extendedHeaders: boolean;
  readonly multiConn: boolean;
  readonly tls: boolean;
}

/**
 * The exports that the server at this address lists; the address's own export name plays no part.
 *
 * @throws AppError E_NBD_REFUSED (source) by a server that does not tell; as `openNbdSource`.
 */
export async function listExports(address: NbdAddress, signal: AbortSignal): Promise<ListedExport[]> {
  return once(address, () =>
    withHandshake(address, DEFAULT_TIMING, signal, async (handshake) => {
      const entries = await handshake.list();
      await handshake.abort();
      return entries.map(({ name, description }) => ({
        name,
        ...(description === "" ? {} : { description }),
      }));
    }),
  );
}

/** Opens the export, looks, and leaves. @throws as `openNbdSource`. */
export async function describeExport(address: NbdAddress, signal: AbortSignal): Promise<ExportDescription> {
  return once(address, () =>
    withHandshake(address, DEFAULT_TIMING, signal, async (handshake, transport) => {
      await handshake.negotiateReplies();
      const contexts = await handshake.listContexts();
      const agreed = await handshake.go();
      await new NbdConnection(address, transport, agreed, DEFAULT_TIMING).disconnect();
      return {
        size: agreed.size,
        description: agreed.description,
        readOnly: (agreed.flags & ExportFlag.READ_ONLY) !== 0,
        blockSize: agreed.blockSize,
        contexts,
        structuredReplies: agreed.structured,
        extendedHeaders: agreed.extended,
        multiConn: (agreed.flags & ExportFlag.CAN_MULTI_CONN) !== 0,
        tls: address.tls,
      };
    }),
  );
}

/** A first connection is not tried again: most likely the address is wrong. */
async function once<T>(address: NbdAddress, connect: () => Promise<T>): Promise<T> {
  try {
    return await connect();
  } catch (error) {
    if (!hasCode(error, "E_NBD_LOST")) throw error;
    throw new AppError("source", "E_NBD_CONNECT", error.message, { uri: address.uri }, error);
  }
}
