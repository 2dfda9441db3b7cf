import { spawn } from "node:child_process";
import { AppError, systemCode } from "../errors.ts";

const TIMEOUT_MS = 60_000;

/**
 * What a command prints, up to `limit` bytes; the rest is not read. Its words on stderr go to ours.
 *
 * The command line is what a variable holds, and `sh` takes it from there, so that it does not stand in the list of
 * processes. It runs in a session of its own: when its time is over, or the run is stopped, all it has started ends.
 *
 * @param variable of the environment, such as BLOCKHAUL_PASSWORD_COMMAND.
 * @throws AppError E_PASSWORD_COMMAND (credentials): it failed, or took longer than 60 s.
 */
export async function commandOutput(
  variable: string,
  limit: number,
  signal: AbortSignal,
  timeoutMs = TIMEOUT_MS,
): Promise<Buffer> {
  signal.throwIfAborted();
  const child = spawn("sh", ["-c", `eval "$${variable}"`], {
    stdio: ["ignore", "pipe", "inherit"],
    detached: true,
  });
  return await new Promise<Buffer>((resolve, reject) => {
    const output = Buffer.alloc(limit);
    let length = 0;
    let closed = false;
    const end = (error?: unknown): void => {
      clearTimeout(timer);
      signal.removeEventListener("abort", abort);
      if (!closed) endGroup(child.pid);
      child.stdout.destroy();
      if (error === undefined) {
        resolve(output.subarray(0, length));
        return;
      }
      output.fill(0);
      reject(error);
    };
    const abort = (): void => end(signal.reason);
    const timer = setTimeout(
      () => end(failed(variable, `took longer than ${timeoutMs / 1000} s`)),
      timeoutMs,
    );
    signal.addEventListener("abort", abort);
    child.stdout.on("data", (bytes: Buffer) => {
      length += bytes.copy(output, length);
      bytes.fill(0);
      if (length === limit) end();
    });
    child.on("error", (error) => end(failed(variable, "could not be run by sh", error)));
    child.on("close", (code, killed) => {
      closed = true; // and its number may be somebody else's by now
      end(code === 0 ? undefined : failed(variable, `ended with ${killed ?? code}`));
    });
  });
}

function endGroup(pid: number | undefined): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, "SIGKILL");
  } catch (error) {
    if (systemCode(error) !== "ESRCH") throw error; // all of it has ended
  }
}

function failed(variable: string, why: string, cause?: unknown): AppError {
  return new AppError("credentials", "E_PASSWORD_COMMAND", `The command of ${variable} ${why}`, {}, cause);
}
