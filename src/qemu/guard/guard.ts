import { extname } from "node:path";
import { AppError, hasCode, messageOf } from "../../errors.ts";
import { agentSocket } from "./agent-socket.ts";
import { FrozenGuest } from "./frozen-guest.ts";
import { GuardLink } from "./link.ts";
import { errorFrom, type GuardReady, type GuardSetup, type Thawed } from "./messages.ts";

export type { Thawed } from "./messages.ts";

export const DEFAULT_FREEZE_BUDGET_MS = 5000;
export const DEFAULT_SILENCE_MS = 30_000;

/** Signs of life in the time after which silence is believed. */
const SIGNS = 5;

export interface GuardOptions {
  /** The monitor's socket. */
  readonly qmp: string;
  /** The guest agent's socket, if there is one. */
  readonly agent?: string | undefined;
  /** Of the run: what it leaves behind is found by it. */
  readonly token: string;
  readonly scratchDir: string;
  /** The longest that the guest may stand frozen, from the request on. */
  readonly freezeBudgetMs?: number | undefined;
  /** This process is ended when its event loop has stood still for so long. */
  readonly silenceMs?: number | undefined;
}

/** What the guard of a run on a QEMU is told. */
export interface QemuGuardSetup extends GuardSetup {
  /** The monitor's socket, for the time after us. */
  readonly qmp: string;
  /** The guest agent's socket; without one nothing is ever frozen. */
  readonly agent: string | undefined;
  readonly token: string;
  readonly scratchDir: string;
}

/** A kind of guard, and what one of it is started with. */
export interface GuardKind<Setup extends GuardSetup> {
  /** Its program; from the sources or from the build, as the caller. */
  readonly entry: URL;
  readonly setup: Setup;
  /** The way to the guest for this process, should the guard die; undefined: nothing is ever frozen. */
  readonly guest: (() => FrozenGuest) | undefined;
}

const QEMU_ENTRY = new URL(`./process${extname(import.meta.url)}`, import.meta.url);

/**
 * A process that watches over this one while it has a point in time. The guard alone talks to the guest agent: it
 * freezes and thaws when asked, and thaws by itself when the freeze's budget is over, whatever became of us. When we
 * die, or hang, it also takes down in QEMU what we left there. Neither our end nor that of our terminal reaches it.
 *
 * When the guard dies, this process thaws, and `died` says so.
 */
export class Guard {
  /** The guest was found frozen, left so by somebody who is gone, and was thawed. */
  readonly foundFrozen: boolean;
  /** Why freezing will not work, as known at the start. */
  readonly agentError: AppError | undefined;
  /** AppError E_GUARD (source), when a guest that was frozen has been thawed. Never resolves, nor rejects after `finish`. */
  readonly died: Promise<never>;
  readonly #link: GuardLink;
  readonly #guest: (() => FrozenGuest) | undefined;
  /** From the request to freeze until the thaw was confirmed. */
  #mayBeFrozen = false;
  #last: Thawed = { frozenMs: 0, overrun: false };
  #finished = false;

  private constructor(link: GuardLink, guest: (() => FrozenGuest) | undefined, ready: GuardReady) {
    this.#link = link;
    this.#guest = guest;
    this.foundFrozen = ready.foundFrozen;
    this.agentError = ready.agentError === undefined ? undefined : errorFrom(ready.agentError);
    this.died = link.ended.then((end) =>
      this.#finished ? new Promise<never>(() => undefined) : this.#afterDeath(end),
    );
    this.died.catch(() => undefined); // whoever waits hears it
  }

  /**
   * Starts one for a run on a QEMU whose monitor we have; otherwise as `launch`.
   *
   * @throws as `launch`.
   */
  static async start(options: GuardOptions, signal: AbortSignal): Promise<Guard> {
    const { qmp, agent, token, scratchDir } = options;
    const { freezeBudgetMs = DEFAULT_FREEZE_BUDGET_MS, silenceMs = DEFAULT_SILENCE_MS } = options;
    const setup = { qmp, agent, token, scratchDir, freezeBudgetMs, silenceMs };
    const guest =
      agent === undefined ? undefined : () => new FrozenGuest(agentSocket(agent), DEFAULT_FREEZE_BUDGET_MS);
    return await Guard.launch<QemuGuardSetup>({ entry: QEMU_ENTRY, setup, guest }, signal);
  }

  /**
   * Starts it before anything is done to the VM. A guest agent that does not answer is no failure yet.
   *
   * @throws AppError E_GUARD (source); the signal's reason.
   */
  static async launch<Setup extends GuardSetup>(
    { entry, setup, guest }: GuardKind<Setup>,
    signal: AbortSignal,
  ): Promise<Guard> {
    signal.throwIfAborted();
    const link = new GuardLink(entry);
    const stop = (): void => void link.kill();
    signal.addEventListener("abort", stop, { once: true });
    try {
      const ready = await link.call("start", setup);
      link.giveSigns(setup.silenceMs / SIGNS);
      return new Guard(link, guest, ready);
    } catch (error) {
      await link.kill();
      signal.throwIfAborted();
      throw error;
    } finally {
      signal.removeEventListener("abort", stop);
    }
  }

  /**
   * Freezes the guest's file systems; the budget starts now. Thaw in `finally`.
   *
   * @returns the number of file systems frozen.
   * @throws AppError E_FREEZE (source) with the agent's own words, and E_AGENT_CONNECT, E_AGENT_SILENT and its other
   *   errors: nothing is frozen. E_FROZEN (source): the guest may be frozen, and could not be thawed. E_GUARD (source).
   *   The signal's reason: nothing is frozen.
   */
  async freeze(signal: AbortSignal): Promise<number> {
    signal.throwIfAborted();
    if (this.#guest === undefined) {
      throw new AppError("source", "E_FREEZE", "The guest was not frozen: no guest agent was named");
    }
    this.#mayBeFrozen = true;
    this.#last = { frozenMs: 0, overrun: false };
    const takeBack = (): void => void this.#orDeath(this.#link.call("thaw")).catch(() => undefined); // `freeze` hears it
    signal.addEventListener("abort", takeBack, { once: true });
    try {
      const count = await this.#orDeath(this.#link.call("freeze"));
      if (signal.aborted) await this.thaw();
      signal.throwIfAborted();
      return count;
    } catch (error) {
      this.#mayBeFrozen = hasCode(error, "E_FROZEN");
      if (!this.#mayBeFrozen) signal.throwIfAborted();
      throw error;
    } finally {
      signal.removeEventListener("abort", takeBack);
    }
  }

  /**
   * Thaws what `freeze` froze. Nothing stops it.
   *
   * @returns what became of the last freeze, if it was done. After an `overrun` the guest wrote between freeze and thaw, nobody knows
   *   since when: whatever was done meanwhile is crash consistent at best.
   * @throws AppError E_FROZEN (source): the guest may be frozen. E_GUARD (source): the guard died while the guest was
   *   frozen; it is thawed.
   */
  async thaw(): Promise<Thawed> {
    if (!this.#mayBeFrozen) return this.#last;
    this.#last = await this.#orDeath(this.#link.call("thaw"));
    this.#mayBeFrozen = false;
    return this.#last;
  }

  /** This run has taken down everything itself: the guard goes without doing anything. Never throws. Safe to call twice. */
  async finish(): Promise<void> {
    if (this.#finished) return;
    await this.thaw().catch(() => undefined); // it was told before, or nobody asked
    this.#finished = true;
    try {
      await this.#link.release(await this.#link.call("finish"));
    } catch {
      await this.#link.kill();
    }
  }

  /** @throws AppError as the guard threw it; what `died` says when it died. */
  async #orDeath<T>(call: Promise<T>): Promise<T> {
    try {
      return await call;
    } catch (error) {
      if (hasCode(error, "E_GUARD")) return this.died;
      throw error;
    }
  }

  async #afterDeath(end: AppError): Promise<never> {
    if (!this.#mayBeFrozen || this.#guest === undefined) throw end;
    const guest = this.#guest();
    let how = "was thawed";
    try {
      await guest.thawForSure();
      this.#mayBeFrozen = false;
    } catch (error) {
      how = `was not: ${messageOf(error)}`;
    } finally {
      await guest.close();
    }
    throw new AppError(
      "source",
      "E_GUARD",
      `${end.message} while the guest stood frozen; it ${how}`,
      {},
      end,
    );
  }
}
