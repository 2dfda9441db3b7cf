import { readFileSync, readlinkSync } from "node:fs";
import { AppError } from "../errors.ts";

/** The first descriptor that systemd hands over (sd_listen_fds(3)). */
const FIRST_FD = 3;

/**
 * The socket that systemd listens on for us, or undefined. The variables count only for the process they name: a child
 * inherits them too.
 *
 * @throws AppError E_SOCKET_ACTIVATION (usage) for several sockets.
 */
export function activatedSocket(
  environment: Readonly<Record<string, string | undefined>>,
): { readonly fd: number; readonly path?: string } | undefined {
  if (environment["LISTEN_PID"] !== String(process.pid)) return undefined;
  const count = Number(environment["LISTEN_FDS"] ?? 0);
  if (count === 0) return undefined;
  if (count !== 1) {
    throw new AppError(
      "usage",
      "E_SOCKET_ACTIVATION",
      `systemd hands over ${count} sockets, serve takes one; give the unit one ListenStream=`,
    );
  }
  const path = pathOf(FIRST_FD);
  return path === undefined ? { fd: FIRST_FD } : { fd: FIRST_FD, path };
}

/** Where a Unix socket is; undefined for TCP. A handle does not tell, the kernel's table does (proc_net(5)). */
function pathOf(fd: number): string | undefined {
  const inode = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/self/fd/${fd}`))?.[1];
  const lines = readFileSync("/proc/net/unix", "utf8").split("\n");
  const fields = lines.map((line) => line.trim().split(/\s+/)).find((found) => found[6] === inode);
  return fields?.[7];
}
