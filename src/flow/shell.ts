import { spawn } from "node:child_process";
import { kill } from "node:process";
import { systemCode } from "../errors.ts";

/** A command line and what it runs in. */
export interface ShellCommand {
  /** For `sh`, which takes it from its environment, so that it does not stand in the list of processes. */
  readonly line: string;
  readonly environment: Readonly<Record<string, string | undefined>>;
  readonly timeoutMs: number;
  /** Bytes of its output that are wanted: with the last of them it is ended. 0: its output goes where our words go (stderr). */
  readonly outputMax: number;
}

export interface ShellResult {
  /** The caller's to overwrite. */
  readonly output: Buffer;
  /** Why it did not end well: "ended with 3", "took longer than 60 s"; undefined when it did. */
  readonly failure: string | undefined;
  readonly cause: unknown;
}

/** Nothing that the command line starts inherits the variable that it came in. */
const SCRIPT = 'line=$BLOCKHAUL_COMMAND_LINE; unset BLOCKHAUL_COMMAND_LINE; eval "$line"';

/**
 * Runs a command line by `sh`, without input; its words on stderr go to ours.
 *
 * It runs in a session of its own: when its time is over, or the run is stopped, all it has started ends.
 *
 * @throws the signal's reason.
 */
export async function runShell(command: ShellCommand, signal: AbortSignal): Promise<ShellResult> {
  signal.throwIfAborted();
  const { line, environment, timeoutMs, outputMax } = command;
  const child = spawn("sh", ["-c", SCRIPT], {
    stdio: ["ignore", outputMax === 0 ? 2 : "pipe", "inherit"],
    detached: true,
    env: { ...environment, BLOCKHAUL_COMMAND_LINE: line },
  });
  return await new Promise<ShellResult>((resolve, reject) => {
    const output = Buffer.alloc(outputMax);
    let length = 0;
    let closed = false;
    const end = (failure: string | undefined, cause?: unknown): void => {
      clearTimeout(timer);
      signal.removeEventListener("abort", abort);
      if (!closed) endGroup(child.pid);
      child.stdout?.destroy();
      if (failure !== undefined || signal.aborted) output.fill(0);
      if (signal.aborted) reject(signal.reason);
      else resolve({ output: output.subarray(0, length), failure, cause });
    };
    const abort = (): void => end("stopped");
    const timer = setTimeout(() => end(`took longer than ${timeoutMs / 1000} s`), timeoutMs);
    signal.addEventListener("abort", abort);
    child.stdout?.on("data", (bytes: Buffer) => {
      length += bytes.copy(output, length);
      bytes.fill(0);
      if (length === outputMax) end(undefined);
    });
    child.on("error", (error) => end("could not be run by sh", error));
    child.on("close", (code, killed) => {
      closed = true; // and its number may be somebody else's by now
      end(code === 0 ? undefined : `ended with ${killed ?? code}`);
    });
  });
}

function endGroup(pid: number | undefined): void {
  if (pid === undefined) return;
  try {
    kill(-pid, "SIGKILL");
  } catch (error) {
    if (systemCode(error) !== "ESRCH") throw error; // all of it has ended
  }
}
