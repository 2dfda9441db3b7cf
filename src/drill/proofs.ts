import { once } from "node:events";
import { spawn, type ChildProcess } from "node:child_process";
import { access } from "node:fs/promises";
import { kill } from "node:process";
import { AppError, systemCode } from "../errors.ts";
import { pause } from "../flow/retry.ts";
import { GuestAgent } from "../qemu/guest-agent.ts";

/** How long one attempt to hear of the agent takes; what is asked of it waits in the guest's channel, so few are needed. */
const AGENT_SYNC_MS = 10_000;
const AGENT_AGAIN_MS = 200;
const SOCKET_AGAIN_MS = 10;
/** What a script gets to end by itself. */
const SCRIPT_LINGER_MS = 5000;
/** Characters kept of what a script says. */
const SCRIPT_WORDS_MAX = 16 * 1024;

/** Resolves when the guest's agent has answered. @throws the signal's reason, which bounds it. */
export async function agentAnswers(socket: string, signal: AbortSignal): Promise<void> {
  for (;;) {
    signal.throwIfAborted();
    try {
      const agent = await GuestAgent.connect(socket, signal, { syncMs: AGENT_SYNC_MS });
      await agent.close();
      return;
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof AppError) || error.kind !== "source") throw error;
      await pause(AGENT_AGAIN_MS, signal); // QEMU has not made the socket yet, or the agent is being restarted
    }
  }
}

/** Resolves when QEMU has made the agent's socket. @throws the signal's reason, which bounds it. */
export async function agentSocketMade(socket: string, signal: AbortSignal): Promise<void> {
  const isThere = (): Promise<boolean> =>
    access(socket).then(
      () => true,
      () => false,
    );
  while (!(await isThere())) await pause(SOCKET_AGAIN_MS, signal);
}

export interface ScriptWish {
  /** A program, absolute. */
  readonly file: string;
  /** All of its environment. */
  readonly environment: Readonly<Record<string, string | undefined>>;
}

/**
 * Runs the user's own test to its end; it passes by exit code 0. It has a process group of its own, which is ended as a
 * whole.
 *
 * @throws AppError E_DRILL_SCRIPT (source): it ended with another code; E_DRILL_SCRIPT_FILE (usage): it cannot be run;
 *   the signal's reason.
 */
export async function scriptPasses({ file, environment }: ScriptWish, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  const child = spawn(file, [], { env: environment, detached: true, stdio: ["ignore", "pipe", "pipe"] });
  let words = "";
  const keep = (text: string): void => void (words = (words + text).slice(-SCRIPT_WORDS_MAX));
  child.stdout.setEncoding("utf8").on("data", keep);
  child.stderr.setEncoding("utf8").on("data", keep);
  const exited = once(child, "exit") as Promise<[number | null, NodeJS.Signals | null]>;
  const stopped = new Promise<undefined>((resolve) => {
    signal.addEventListener("abort", () => resolve(undefined), { once: true });
  });
  try {
    const exit = await Promise.race([exited, stopped]);
    signal.throwIfAborted();
    const [code, end] = exit!;
    if (code === 0) return;
    const said = words.trim().split("\n").at(-1) ?? "";
    const message = `${file} ended with ${end ?? code}${said === "" ? "" : `: ${said.slice(0, 500)}`}`;
    throw new AppError("source", "E_DRILL_SCRIPT", message, { file });
  } catch (error) {
    const code = systemCode(error);
    if (code !== "ENOENT" && code !== "EACCES" && code !== "ENOEXEC") throw error;
    const message = `${file} cannot be run (${code}): is it there, executable, and has it a first line like #!/bin/sh`;
    throw new AppError("usage", "E_DRILL_SCRIPT_FILE", message, { file }, error);
  } finally {
    await endGroup(child, exited);
  }
}

/** Also what a script that has ended left behind. */
async function endGroup(child: ChildProcess, exited: Promise<unknown>): Promise<void> {
  if (child.pid === undefined) return;
  signalGroup(child.pid, "SIGTERM");
  const inTime = new AbortController();
  const linger = pause(SCRIPT_LINGER_MS, inTime.signal).catch(() => undefined);
  await Promise.race([exited, linger]).catch(() => undefined);
  inTime.abort();
  signalGroup(child.pid, "SIGKILL");
  await exited.catch(() => undefined);
  child.stdout?.destroy();
  child.stderr?.destroy();
}

function signalGroup(leader: number, name: NodeJS.Signals): void {
  try {
    kill(-leader, name);
  } catch (error) {
    if (systemCode(error) !== "ESRCH") throw error; // nobody of it is left
  }
}
