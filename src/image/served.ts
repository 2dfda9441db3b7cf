import { AppError, hasCode } from "../errors.ts";
import type { RunningProgram } from "../flow/programs.ts";
import { pause } from "../flow/retry.ts";

/** How long qemu-nbd may take to listen, in milliseconds. */
const START_MS = 20_000;

/**
 * Opens what a qemu-nbd serves that was just started. Its socket is there before anybody listens on it, and whoever comes too
 * early is refused.
 *
 * @param open fails with E_NBD_CONNECT as long as nobody answers.
 * @throws AppError what `server.died` says, E_PROGRAM (source); as `open`.
 */
export async function whenServed<T>(
  server: RunningProgram,
  open: (signal: AbortSignal) => Promise<T>,
  signal: AbortSignal,
): Promise<T> {
  const dead = new AbortController();
  server.died.catch((reason: unknown) => dead.abort(reason));
  const either = AbortSignal.any([signal, dead.signal]);
  const deadline = performance.now() + START_MS;
  for (;;) {
    try {
      return await open(either);
    } catch (error) {
      either.throwIfAborted();
      if (!hasCode(error, "E_NBD_CONNECT")) throw error;
      if (performance.now() > deadline) throw silent(error);
      await pause(10, either);
    }
  }
}

function silent(cause: unknown): AppError {
  const message = `qemu-nbd did not begin to serve within ${START_MS / 1000} s`;
  return new AppError("source", "E_PROGRAM", message, {}, cause);
}
