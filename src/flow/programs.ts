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
  virsh: "libvirt-clients",
};

/** How often a program is asked to end, and how long it has each time, in milliseconds. */
const STOP_SIGNALS = 20;
const STOP_REPEAT_MS = 1000;

/** Output kept of a program, in bytes; more is a failure of that program. */
const OUTPUT_MAX = 64 * 1024;

/** What `sh` exits with when there is no such program. */
const SH_NOT_FOUND = 127;

/**
 * Runs a program that ends when our end of its input is closed: also when we are killed. What runs in the background of `sh` has
 * no input of its own, hence descriptor 3.
 */
const LEASH = `exec 3<&0 </dev/null
"$@" 3<&- & program=$!
{ read -r _ <&3; kill -KILL $program; } 2>/dev/null & leash=$!
exec 3<&-
wait $program; code=$?
kill -KILL $leash 2>/dev/null
exit $code`;

/**
 * Runs a program to its end.
 *
 * @param outputMax bytes of its output that are taken; more is a failure.
 * @throws AppError E_PROGRAM_MISSING (usage: says what to install), E_PROGRAM (source: its own last words).
 */
export async function runProgram(
  program: string,
  args: readonly string[],
  signal: AbortSignal,
  outputMax = OUTPUT_MAX,
): Promise<string> {
  return await new Promise((resolve, reject) => {
    execFile(program, args, { signal, maxBuffer: outputMax }, (error, stdout, stderr) => {
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

/**
 * Runs a program that must not be ended half-way, neither by Ctrl-C, which reaches all that the terminal runs, nor when we are
 * killed.
 *
 * @param timeoutMs after which it is left to itself, which is an error.
 * @throws AppError as `runProgram`.
 */
export async function runUndisturbed(
  program: string,
  args: readonly string[],
  timeoutMs: number,
): Promise<void> {
  const child = spawn(program, args, { stdio: ["ignore", "ignore", "pipe"], detached: true });
  const words = lastWords(child);
  await new Promise<void>((resolve, reject) => {
    const fail = (why: string): void =>
      reject(new AppError("source", "E_PROGRAM", `${program} failed: ${why}`));
    const timer = setTimeout(() => {
      child.unref();
      child.stderr.destroy();
      fail(`it did not end within ${timeoutMs / 1000} s`);
    }, timeoutMs);
    child.on("error", (error) => {
      clearTimeout(timer);
      reject(systemCode(error) === "ENOENT" ? missing(program, error) : error);
    });
    child.on("close", (code, end) => {
      clearTimeout(timer);
      if (code === 0) resolve();
      else fail(lastLine(words()) || `ended with ${end ?? code}`);
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
  return { died: deathOf(child, program), stop: () => stop(child) };
}

/**
 * As `startProgram`, for one that may be ended at any moment: it is killed as soon as this process ends, however that comes, and
 * by `stop`.
 */
export function startLeashed(program: string, args: readonly string[]): RunningProgram {
  const child = spawn("sh", ["-c", LEASH, "sh", program, ...args], {
    stdio: ["pipe", "ignore", "pipe"],
    detached: true, // Ctrl-C is for us: then the run ends in good order, and this with it
  });
  child.stdin.on("error", () => undefined); // it has ended first
  const letGo = async (): Promise<void> => {
    child.stdin.destroy();
    if (child.pid !== undefined && !isOver(child)) await once(child, "exit");
  };
  return { died: deathOf(child, program, SH_NOT_FOUND), stop: letGo };
}

/** Its exit as an error. @param notFound the code by which who starts it says that there is no such program. */
function deathOf(child: ChildProcess, program: string, notFound?: number): Promise<never> {
  const words = lastWords(child);
  const died = new Promise<never>((_, reject) => {
    child.on("error", (error) => reject(systemCode(error) === "ENOENT" ? missing(program, error) : error));
    child.on("close", (code, end) => {
      const message = `${program} ended (${end ?? code}): ${lastLine(words())}`;
      reject(
        code !== null && code === notFound
          ? missing(program, message)
          : new AppError("source", "E_PROGRAM", message, { program }),
      );
    });
  });
  died.catch(() => undefined); // whoever waits hears it
  return died;
}

function lastWords(child: ChildProcess): () => string {
  let words = "";
  child.stderr!.setEncoding("utf8").on("data", (text: string) => (words = (words + text).slice(-OUTPUT_MAX)));
  return () => words;
}

function isOver({ exitCode, signalCode }: ChildProcess): boolean {
  return exitCode !== null || signalCode !== null;
}

/** More than once: qemu-nbd forgets a signal that comes before its main loop has begun. */
async function stop(child: ChildProcess): Promise<void> {
  if (child.pid === undefined || isOver(child)) return;
  const exited = once(child, "exit");
  for (let time = 0; time < STOP_SIGNALS && !isOver(child); time++) {
    child.kill("SIGTERM");
    await Promise.race([exited, pause(STOP_REPEAT_MS, undefined, { ref: false })]);
  }
  if (!isOver(child)) child.kill("SIGKILL");
  await exited;
}

/** E_PROGRAM_MISSING (usage), which says what to install. */
export function missing(program: string, cause: unknown): AppError {
  const from = PACKAGES[program];
  const hint = from === undefined ? "" : `; on Debian: apt install ${from}`;
  const message = `${program} is not installed${hint}`;
  return new AppError("usage", "E_PROGRAM_MISSING", message, { program }, cause);
}

function lastLine(text: string): string {
  return text.trim().split("\n").at(-1) ?? "";
}
