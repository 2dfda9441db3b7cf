import { AppError } from "../errors.ts";
import type { Findings } from "./findings.ts";
import type { MachinePlace, MachineWish } from "./machine-arguments.ts";
import { Machine } from "./machine.ts";
import { agentAnswers, agentSocketMade, scriptPasses } from "./proofs.ts";

/** What is to be shown by a guest that boots; all that is given must be. */
export interface ProofWish {
  /** The guest agent answers. */
  readonly agent: boolean;
  /** The serial console says something that matches. */
  readonly console: RegExp | undefined;
  /** A program of the user's ends with 0. It is started when the others are shown. */
  readonly script: string | undefined;
}

/** After this no guest comes up by itself: words of SeaBIOS, and of Linux. */
const HOPELESS = /No bootable device\.|^(?:\[ *\d+\.\d+\] )?Kernel panic - not syncing[^\n]*\n/m;

export interface Boot {
  readonly machine: MachineWish;
  readonly proofs: ProofWish;
}

/** Where it is booted, and who hears of it. */
export interface BootContext {
  readonly place: MachinePlace;
  readonly findings: Findings;
  /** What a script is told. */
  readonly environment: Readonly<Record<string, string | undefined>>;
  /** Ends the attempt with this reason: the guest ended, or says that it cannot come up. */
  readonly stop: (reason: unknown) => void;
}

/** Boots the disks and waits for all that is asked for. The machine is gone when it settles. @throws as `runDrill`. */
export async function bootAndWait(
  { machine: wish, proofs }: Boot,
  { place, findings, environment, stop }: BootContext,
  signal: AbortSignal,
): Promise<void> {
  const { agent, console: pattern, script } = proofs;
  let said: Promise<unknown> | undefined;
  let done = false;
  const machine = await Machine.start(wish, place, (console) => {
    findings.console = console;
    if (pattern !== undefined) said = console.said(pattern);
    void console.said(HOPELESS).then((words) => stop(gaveUp(words)));
  });
  try {
    machine.over.catch((ended: unknown) => {
      if (!done) stop(ended);
    });
    await Promise.all([
      agent && agentAnswers(place.agent, signal).then(() => findings.shown("agent")),
      said !== undefined && unlessAborted(said, signal).then(() => findings.shown("console")),
    ]);
    if (script === undefined) return;
    await agentSocketMade(place.agent, signal); // else a script would begin before the machine
    await scriptPasses({ file: script, environment }, signal);
    findings.shown("script");
  } finally {
    done = true;
    await machine.kill();
  }
}

async function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted();
  const aborted = Promise.withResolvers<never>();
  const leave = (): void => aborted.reject(signal.reason);
  signal.addEventListener("abort", leave, { once: true });
  try {
    return await Promise.race([work, aborted.promise]);
  } finally {
    signal.removeEventListener("abort", leave);
  }
}

function gaveUp(words: string): AppError {
  return new AppError(
    "source",
    "E_DRILL_CONSOLE",
    `The guest cannot come up; its console says: ${words.trim()}`,
  );
}
