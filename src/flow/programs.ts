import { execFile, spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { setTimeout as pause } from "node:timers/promises";
import { AppError, messageOf, systemCode } from "../errors.ts";

/** The Debian packages of the programs that are run. */
const PACKAGES: Readonly<Record<string, string>> = {
  "qemu-img": "qemu-utils",
  "qemu-nbd": "qemu-utils",
  fallocate: "util-linux",
  losetup: "mount",
  mount: "mount",
  umount: "mount",
};

/** How often a program is asked to end, and how long it has each time, in milliseconds. */
const STOP_SIGNALS = 20;
const STOP_REPEAT_MS = 1000;

/** Output kept of a program, in bytes; more is a failure of that program. */
const OUTPUT_MAX = 64 * 1024;

/**
 * Runs a program to its end.
 *
 * @throws AppError E_PROGRAM_MISSING (usage: says what to install), E_PROGRAM (source: its own last words).
 */
export async function runProgram(
  program: string,
  args: readonly string[],
  signal: AbortSignal,
): Promise<string> {
  return await new Promise((resolve, reject) => {
    execFile(program, args, { signal, maxBuffer: OUTPUT_MAX }, (error, stdout, stderr) => {
      if (error === null) resolve(stdout);
      else if (signal.aborted) reject(signal.reason);
      else if (systemCode(error) === "ENOENT") reject(missing(program, error));
      else
        reject(
          new AppError(
            "source",
            "E_PROGRAM",
            `${program} failed: ${lastLine(stderr) || messageOf(error)}`,
            {},
            error,
          ),
        );
    });
  });
}

/** A server program that runs until it is ended. */
export interface RunningProgram {
  /** Its exit, with its last words, as an error. Never resolves. */
  readonly died: Promise<never>;
  /** SIGTERM, and waits for its end; SIGKILL when that has not come within 20 s. Safe to call twice. */
  stop(): Promise<void>;
}

/** Starts a server program. It has not begun to serve when this returns. */
export function startProgram(program: string, args: readonly string[]): RunningProgram {
  const child = spawn(program, args, { stdio: ["ignore", "ignore", "pipe"] });
  let words = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => (words = (words + text).slice(-OUTPUT_MAX)));
  const died = new Promise<never>((_, reject) => {
    child.on("error", (error) => reject(systemCode(error) === "ENOENT" ? missing(program, error) : error));
    child.on("exit", (code, end) =>
      reject(new AppError("source", "E_PROGRAM", `${program} ended (${end ?? code}): ${lastLine(words)}`)),
    );
  });
  died.catch(() => undefined); // whoever waits hears it
  return { died, stop: () => stop(child) };
}

/** More than once: qemu-nbd forgets a signal that comes before its main loop has begun. */
async function stop(child: ChildProcess): Promise<void> {
  const isOver = (): boolean => child.exitCode !== null || child.signalCode !== null;
  if (child.pid === undefined || isOver()) return;
  const exited = once(child, "exit");
  for (let time = 0; time < STOP_SIGNALS && !isOver(); time++) {
    child.kill("SIGTERM");
    await Promise.race([exited, pause(STOP_REPEAT_MS, undefined, { ref: false })]);
  }
  if (!isOver()) child.kill("SIGKILL");
  await exited;
}

function missing(program: string, cause: unknown): AppError {
  const from = PACKAGES[program];
  const hint = from === undefined ? "" : `; on Debian: apt install ${from}`;
  const message = `${program} is not installed${hint}`;
  return new AppError("usage", "E_PROGRAM_MISSING", message, { program }, cause);
}

function lastLine(text: string): string {
  return text.trim().split("\n").at(-1) ?? "";
}
