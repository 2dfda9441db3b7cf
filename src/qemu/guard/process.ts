import { AppError, hasCode } from "../../errors.ts";
import { pause } from "../../flow/retry.ts";
import { QmpClient } from "../qmp/client.ts";
import { clearLeftovers } from "../recovery.ts";
import { FrozenGuest } from "./frozen-guest.ts";
import {
  errorFacts,
  type FromGuard,
  type GuardAnswers,
  type GuardCall,
  type GuardReady,
  type GuardSetup,
  type ToGuard,
} from "./messages.ts";

/**
 * The guard: a process of its own, started by `Guard` with an IPC channel, that outlives a parent which dies or hangs.
 * It keeps the freeze's budget; and when the parent goes without a word it takes down in QEMU what the parent left
 * there, so that a guest which its scratch stopped runs on.
 */

/** How long taking down may take, the wait for the monitor included. */
const RECOVERY_MS = 300_000;

/** The pause before it is tried again. */
const RECOVERY_AGAIN_MS = 1000;

/** The parent's silence is looked at this often in its limit. */
const LOOKS = 5;

class GuardProcess {
  /** Whose death leaves the channel to us alone; then somebody else adopts us. */
  readonly #parent = process.ppid;
  #setup: GuardSetup | undefined;
  #guest: FrozenGuest | undefined;
  #heardAt = performance.now();
  #suspected = false;
  #watch: NodeJS.Timeout | undefined;
  #finished = false;

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
    if (message.call === "start") return this.#start(message.setup);
    if (message.call === "finish") return this.#finish();
    if (this.#guest === undefined) throw new AppError("bug", "E_GUARD_BUG", "The guard knows no guest agent");
    return message.call === "freeze" ? this.#guest.freeze() : this.#guest.thaw();
  }

  async #start(setup: GuardSetup): Promise<GuardReady> {
    this.#setup = setup;
    this.#watch = setInterval(() => this.#look(setup.silenceMs), setup.silenceMs / LOOKS);
    if (setup.agent === undefined) return { foundFrozen: false, agentError: undefined };
    this.#guest = new FrozenGuest(setup.agent, setup.freezeBudgetMs);
    try {
      return { foundFrozen: await this.#guest.prepare(), agentError: undefined };
    } catch (error) {
      return { foundFrozen: false, agentError: errorFacts(error) };
    }
  }

  /** The parent closes the channel next. */
  #finish(): boolean {
    this.#finished = true;
    return this.#guest?.mayBeFrozen !== true;
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
    const setup = this.#setup;
    if (setup === undefined) return;
    // Side by side: a VM that stands still cannot thaw, and a frozen guest must not wait until QEMU has answered.
    const thaw = this.#thaw();
    const recovery = this.#finished ? undefined : recover(setup);
    void Promise.allSettled([thaw, recovery]).then(() => process.exit());
  }

  async #thaw(): Promise<void> {
    try {
      await this.#guest?.thaw();
    } finally {
      await this.#guest?.close();
    }
  }

  #say(message: FromGuard): void {
    if (process.connected) process.send!(message, undefined, undefined, () => undefined);
  }
}

async function recover({ qmp, token, scratchDir }: GuardSetup): Promise<void> {
  const late = AbortSignal.timeout(RECOVERY_MS);
  for (;;) {
    try {
      const client = await QmpClient.connect(qmp, late, { greetingMs: RECOVERY_MS });
      try {
        await clearLeftovers(client, { token, scratchDir }, late);
      } finally {
        await client.close();
      }
      return;
    } catch (error) {
      if (hasCode(error, "E_QMP_CONNECT")) return; // QEMU is gone
    }
    await pause(RECOVERY_AGAIN_MS, late);
  }
}

new GuardProcess().run();
