import { startNbdProcess, type NbdProcess, type NbdProcessOptions } from "./nbd-process.ts";

/**
 * Starts a real qemu-nbd on a private Unix socket and waits until it accepts clients, up to 16 at once. It stays
 * when they leave.
 *
 * @param args options and the image: `["-r", "-f", "qcow2", "-B", "bitmap0", path]`.
 */
export function startQemuNbd(args: readonly string[], options: NbdProcessOptions = {}): Promise<NbdProcess> {
  return startNbdProcess(
    "qemu-nbd",
    ({ socket, port, pidFile }) => [
      "--persistent",
      "--shared=16",
      `--pid-file=${pidFile}`,
      ...(options.exportName === undefined ? [] : [`--export-name=${options.exportName}`]),
      ...(port === undefined ? [`--socket=${socket}`] : [`--port=${port}`, "--bind=127.0.0.1"]),
      ...args,
    ],
    options,
  );
}
