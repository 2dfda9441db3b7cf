import { AppError } from "../../errors.ts";
import { pause } from "../../flow/retry.ts";
import type { FrozenGuest } from "./frozen-guest.ts";
import {
  errorFacts,
  type FromGuard,
  type GuardAnswers,
  type GuardCall,
  type GuardReady,
  type GuardSetup,
  type ToGuard,
} from "./messages.ts";

/** The parent's silence is looked at this often in its limit. */
const LOOKS = 5;

/** How long taking down may take, the wait for whoever runs the VM included. */
export const RECOVERY_MS = 300_000;

/** The pause before it is tried again. */
const RECOVERY_AGAIN_MS = 1000;

/** What a guard watches over. */
export interface Guarded {
  /** Undefined: nothing is ever frozen. */
  readonly guest: FrozenGuest | undefined;
  /** Takes down what a run that has died left. Tried again when it fails, until the signal. */
  takeDown(signal: AbortSignal): Promise<void>;
}

/**
 * The guard: a process of its own, started by `Guard` with an IPC channel, that outlives a parent which dies or hangs.
 * It keeps the freeze's budget; and when the parent goes without a word it takes down what the parent left in the VM,
 * so that a guest which its scratch stopped runs on.
 */
export class GuardProcess<Setup extends GuardSetup> {
  /** Whose death leaves the channel to us alone; then somebody else adopts us. */
  readonly #parent = process.ppid;
  readonly #begin: (setup: Setup) => Guarded;
  #guarded: Guarded | undefined;
  #heardAt = performance.now();
  #suspected = false;
  #watch: NodeJS.Timeout | undefined;
  #finished = false;

  /** @param begin with what its parent started it with. */
  constructor(begin: (setup: Setup) => Guarded) {
    this.#begin = begin;
  }

  run(): void {
    // A terminal's or a service manager's signals are for the parent; we go when it has gone.
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => undefined);
    process.on("message", (message) => this.#hear(message as ToGuard));
    process.once("disconnect", () => this.#orphaned());
    if (!process.connected) this.#orphaned();
  }

  #hear(message: ToGuard): void {
    this.#heardAt = performance.now();
    this.#suspected = false;
    if (message === "alive") return;
    const { id } = message;
    this.#say({ id, heard: true });
    this.#obey(message).then(
      (answer) => this.#say({ id, answer }),
      (error: unknown) => this.#say({ id, failure: errorFacts(error) }),
    );
  }

  async #obey(message: Exclude<ToGuard, "alive">): Promise<GuardAnswers[GuardCall]> {
    if (message.call === "start") return this.#start(message.setup as Setup);
    if (message.call === "finish") return this.#finish();
    const guest = this.#guarded?.guest;
    if (guest === undefined) throw new AppError("bug", "E_GUARD_BUG", "The guard knows no guest agent");
    return message.call === "freeze" ? guest.freeze() : guest.thaw();
  }

  async #start(setup: Setup): Promise<GuardReady> {
    const { guest } = (this.#guarded = this.#begin(setup));
    this.#watch = setInterval(() => this.#look(setup.silenceMs), setup.silenceMs / LOOKS);
    if (guest === undefined) return { foundFrozen: false, agentError: undefined };
    try {
      return { foundFrozen: await guest.prepare(), agentError: undefined };
    } catch (error) {
      return { foundFrozen: false, agentError: errorFacts(error) };
    }
  }

  /** The parent closes the channel next. */
  #finish(): boolean {
    this.#finished = true;
    return this.#guarded?.guest?.mayBeFrozen !== true;
  }

  /** Silence is believed at the second look: what waits in the channel is read in between. */
  #look(silenceMs: number): void {
    if (performance.now() - this.#heardAt <= silenceMs) return;
    if (!this.#suspected) {
      this.#suspected = true;
      return;
    }
    // It hangs, and holds the monitor, through which alone a VM that stands still can be resumed. When it is dead,
    // the channel's end says so.
    if (!process.connected || process.ppid !== this.#parent) return;
    try {
      process.kill(this.#parent, "SIGKILL");
    } catch {
      // it has just gone by itself, or is not ours to end
    }
  }

  /** The channel was closed: by a parent that has finished, or because it died. */
  #orphaned(): void {
    clearInterval(this.#watch);
    const guarded = this.#guarded;
    if (guarded === undefined) return;
    // Side by side: a VM that stands still cannot thaw, and a frozen guest must not wait until QEMU has answered.
    const thaw = this.#thaw(guarded);
    const recovery = this.#finished ? undefined : recover(guarded);
    void Promise.allSettled([thaw, recovery]).then(() => process.exit());
  }

  async #thaw({ guest }: Guarded): Promise<void> {
    try {
      await guest?.thaw();
    } finally {
      await guest?.close();
    }
  }

  #say(message: FromGuard): void {
    if (process.connected) process.send!(message, undefined, undefined, () => undefined);
  }
}

/** @throws the time is over. */
async function recover(guarded: Guarded): Promise<void> {
  const late = AbortSignal.timeout(RECOVERY_MS);
  for (;;) {
    try {
      await guarded.takeDown(late);
      return;
    } catch {
      await pause(RECOVERY_AGAIN_MS, late); // who runs the VM may be busy, or starting anew
    }
  }
}
