import { AppError, hasCode } from "../errors.ts";
import type { RunDisk, View } from "./fleecing.ts";
import { queryExports } from "./inventory.ts";
import { tokenOfExport, type RunNames } from "./names.ts";
import type { QmpClient } from "./qmp/client.ts";

/** Clients that may be connected, for each disk: the readers' connections and a few that look. */
const CLIENTS_A_DISK = 16;

/**
 * Starts QEMU's NBD server, of which it has one. Nothing is exported yet.
 *
 * @returns its socket.
 * @throws AppError E_NBD_SERVER_TAKEN (locked) when somebody else has it; it is left alone.
 */
export async function startNbdServer(
  client: QmpClient,
  names: RunNames,
  folder: string,
  disks: number,
  signal: AbortSignal,
): Promise<string> {
  const path = names.socket(folder);
  const addr = { type: "unix", data: { path } };
  try {
    await client.execute("nbd-server-start", { addr, "max-connections": disks * CLIENTS_A_DISK }, signal);
    return path;
  } catch (error) {
    if (!hasCode(error, "E_QMP_COMMAND") || !String(error.context["desc"]).includes("already running")) {
      throw error;
    }
    const foreign = (await queryExports(client, signal)).filter(({ id }) => tokenOfExport(id) === undefined);
    const whose =
      foreign.length === 0
        ? "it exports nothing"
        : `it has the exports ${foreign.map(({ id }) => id).join(", ")}`;
    throw new AppError(
      "locked",
      "E_NBD_SERVER_TAKEN",
      `QEMU has one NBD server, and another program has started it (${whose}); ` +
        "end what uses it, or stop it with the QMP command nbd-server-stop",
      { exports: foreign.map(({ id }) => id).join(" ") },
      error,
    );
  }
}

/** Exports the disk's view for reading, under the disk's name. */
export async function exportDisk(
  client: QmpClient,
  names: RunNames,
  { index, disk }: Pick<RunDisk, "index" | "disk">,
  { node, bitmaps }: View,
  signal: AbortSignal,
): Promise<void> {
  await client.execute(
    "block-export-add",
    {
      type: "nbd",
      id: names.export(index),
      "node-name": node,
      name: disk.name,
      writable: false,
      ...(bitmaps.length > 0 && { bitmaps }),
    },
    signal,
  );
}
