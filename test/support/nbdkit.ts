import { startNbdProcess, type NbdProcess, type NbdProcessOptions } from "./nbd-process.ts";

/**
 * Starts a real nbdkit on a private Unix socket and waits until it accepts clients.
 *
 * @param args filters, plugin and its parameters: `["--filter=error", "memory", "1M", "error-pread-rate=1"]`.
 */
export function startNbdkit(args: readonly string[], options: NbdProcessOptions = {}): Promise<NbdProcess> {
  return startNbdProcess(
    "nbdkit",
    ({ socket, port, pidFile }) => [
      "--foreground",
      "--exit-with-parent",
      "--pidfile",
      pidFile,
      ...(options.exportName === undefined ? [] : ["--exportname", options.exportName]),
      ...(port === undefined ? ["--unix", socket] : ["--port", `${port}`, "--ipaddr", "127.0.0.1"]),
      ...args,
    ],
    options,
  );
}
