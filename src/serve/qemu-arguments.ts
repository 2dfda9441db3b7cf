import { AppError } from "../errors.ts";
import type { NbdAddress } from "../nbd/uri.ts";

/** What moves a running VM's disk from the export to local storage. */
export interface QemuArguments {
  /** For QEMU's command line, each an option and its value. */
  readonly options: readonly (readonly [string, string])[];
  /** Makes the local image; a command line. */
  readonly createTarget: string;
  /** QMP commands, in order. The mirror's job must be ready (BLOCK_JOB_READY) before its completion. */
  readonly move: readonly object[];
}

export interface QemuExport {
  readonly disk: string;
  readonly address: NbdAddress;
  /** Bytes. */
  readonly size: number;
  readonly writable: boolean;
  /** How the server proves itself; undefined: in clear text. */
  readonly tls: "x509" | "psk" | undefined;
}

/** Seconds for which QEMU holds the guest's requests while the server is restarted. */
const RECONNECT_SECONDS = 60;
const TLS_ID = "blockhaul-tls";

/**
 * How a VM is started on an export, and how its disk is then moved to a local image while it runs.
 *
 * @param targetFolder where the local image is to be, absolute.
 * @throws AppError E_QEMU_DISK_NAME (usage): the disk's name is none that QEMU takes for a node.
 */
export function qemuArguments(served: QemuExport, targetFolder: string): QemuArguments {
  const { disk, address, size, writable, tls } = served;
  const node = `blockhaul-${disk}`;
  const target = `local-${disk}`;
  const file = `${targetFolder}/${disk}.qcow2`;
  if (!/^[A-Za-z0-9._-]{1,21}$/.test(disk)) {
    // node names end at 31 characters (QEMU, block.c)
    const message = `QEMU takes no node name made of "${disk}": up to 21 letters, digits, ".", "-", "_"`;
    throw new AppError("usage", "E_QEMU_DISK_NAME", message);
  }
  const blockdev = {
    driver: "nbd",
    "node-name": node,
    server: socketOf(address),
    export: address.exportName,
    "reconnect-delay": RECONNECT_SECONDS,
    "read-only": !writable,
    ...(writable && { discard: "unmap" }),
    ...(tls !== undefined && { "tls-creds": TLS_ID }),
  };
  const job = `move-${disk}`;
  return {
    options: [
      ...(tls === undefined
        ? []
        : [["-object", `tls-creds-${tls},id=${TLS_ID},endpoint=client,dir=DIR`] as const]),
      ["-blockdev", JSON.stringify(blockdev)],
      ["-device", `virtio-blk-pci,drive=${node}`],
    ],
    createTarget: `qemu-img create -f qcow2 ${file} ${size}`,
    move: [
      {
        execute: "blockdev-add",
        arguments: {
          driver: "qcow2",
          "node-name": target,
          discard: "unmap",
          file: { driver: "file", filename: file },
        },
      },
      {
        execute: "blockdev-mirror",
        arguments: { "job-id": job, device: node, target, sync: "full", "copy-mode": "write-blocking" },
      },
      { execute: "block-job-complete", arguments: { device: job } },
      { execute: "blockdev-del", arguments: { "node-name": node } },
    ],
  };
}

/** For people: to be copied. */
export function qemuText({ options, createTarget, move }: QemuArguments): string {
  const [mirror, complete] = [move.slice(0, 2), move.slice(2)];
  return [
    "Start QEMU with:",
    ...options.map(([option, value]) => `  ${option} '${value}'`),
    "Move the disk to local storage while the VM runs:",
    `  ${createTarget}`,
    ...mirror.map((command) => `  ${JSON.stringify(command)}`),
    "and after the event BLOCK_JOB_READY, which says that both are equal and stay so:",
    ...complete.map((command) => `  ${JSON.stringify(command)}`),
    "(the last one after BLOCK_JOB_COMPLETED; serve is needed no longer then)",
  ].join("\n");
}

function socketOf({ socket }: NbdAddress): object {
  if ("path" in socket) return { type: "unix", path: socket.path };
  return { type: "inet", host: socket.host, port: String(socket.port) };
}
