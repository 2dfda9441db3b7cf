import { AppError, hasCode, messageOf } from "../../errors.ts";
import { pause } from "../../flow/retry.ts";
import type { GuestAgent } from "../guest-agent.ts";
import type { Thawed } from "./messages.ts";

/** How long a thaw is tried. What keeps an agent from answering may pass: a VM that stands still, a busy host. */
const THAW_LIMIT_MS = 120_000;

/** The pause before it is tried again. */
const THAW_AGAIN_MS = 200;

/** A guest's agent as far as it freezes; the promises are those of `GuestAgent`. */
export type FreezingAgent = Pick<GuestAgent, "gone" | "status" | "freeze" | "thaw" | "close">;

/** The way to a guest's agent. */
export interface AgentDoor {
  /** For messages: "its agent at PATH". */
  readonly name: string;
  /** Others use it too: a guest that is found frozen is theirs to thaw. */
  readonly shared: boolean;
  /** For messages: how people thaw a guest that nothing else could. */
  readonly byHand: string;
  /** @throws AppError as `GuestAgent.connect`: E_AGENT_CONNECT (source) when there is no such VM any more. */
  open(freezeMs: number, signal: AbortSignal): Promise<FreezingAgent>;
}

/** From the request to freeze until nothing is frozen any more. */
interface Freeze {
  readonly startedAt: number;
  readonly run: AbortController;
  /** Rejects when nothing is frozen, or E_FROZEN. */
  readonly frozen: Promise<number>;
  readonly budget: NodeJS.Timeout;
  overrun: boolean;
  thawing: Promise<Thawed> | undefined;
}

/**
 * A guest that stands frozen no longer than its budget, whatever anybody else does. Has the agent's connection from
 * `prepare` until a freeze is over, not longer: the agent's socket serves one client.
 */
export class FrozenGuest {
  readonly #door: AgentDoor;
  readonly #budgetMs: number;
  readonly #never = new AbortController().signal;
  #agent: FreezingAgent | undefined;
  #freeze: Freeze | undefined;
  #last: Thawed = { frozenMs: 0, overrun: false };

  /** @param budgetMs from a request to freeze until the guest is thawed, asked for or not. */
  constructor(door: AgentDoor, budgetMs: number) {
    this.#door = door;
    this.#budgetMs = budgetMs;
  }

  /** From the request to freeze until a thaw was confirmed, or that there is nothing to thaw. */
  get mayBeFrozen(): boolean {
    return this.#freeze !== undefined;
  }

  /**
   * Connects, and thaws a guest that stands frozen: whoever did that is gone. Unless the agent is shared.
   *
   * @returns whether it was frozen.
   * @throws AppError as `GuestAgent.connect`, `status` and `thaw`.
   */
  async prepare(): Promise<boolean> {
    if (this.#door.shared) return false;
    const agent = await this.#connected(this.#never);
    if ((await agent.status(this.#never)) === "thawed") return false;
    await agent.thaw(this.#never);
    return true;
  }

  /**
   * @returns the number of file systems frozen.
   * @throws AppError E_FREEZE or as `GuestAgent.connect` (source): nothing is frozen. E_FROZEN (source): the guest may
   *   be, and no thaw was confirmed as long as one was tried.
   */
  async freeze(): Promise<number> {
    if (this.#freeze !== undefined) throw new AppError("bug", "E_FREEZE", "The guest is frozen already");
    const run = new AbortController();
    const freeze: Freeze = {
      startedAt: performance.now(),
      run,
      frozen: this.#tryFreeze(run.signal),
      budget: setTimeout(() => this.#runOut(freeze), this.#budgetMs),
      overrun: false,
      thawing: undefined,
    };
    this.#freeze = freeze;
    try {
      return await freeze.frozen;
    } catch (error) {
      if (!hasCode(error, "E_FROZEN")) await this.#over(freeze);
      throw error;
    }
  }

  /**
   * Thaws what `freeze` froze, or takes back a freeze that is under way.
   *
   * @returns what became of the last freeze.
   * @throws AppError E_FROZEN (source): no thaw was confirmed as long as one was tried.
   */
  async thaw(): Promise<Thawed> {
    const freeze = this.#freeze;
    if (freeze === undefined) return this.#last;
    const why = "The guest was not frozen: the thaw was asked for first";
    freeze.run.abort(new AppError("source", "E_FREEZE", why));
    freeze.thawing ??= this.#takeDown(freeze);
    return freeze.thawing;
  }

  /**
   * Thaws whatever is frozen, with a new connection when the old one is over, for as long as it takes within a limit.
   *
   * @throws AppError E_FROZEN (source).
   */
  async thawForSure(): Promise<void> {
    const late = AbortSignal.timeout(THAW_LIMIT_MS);
    for (;;) {
      try {
        const agent = await this.#connected(late);
        await agent.thaw(late);
        return;
      } catch (error) {
        if (hasCode(error, "E_AGENT_CONNECT")) return; // QEMU is gone, and the guest with it
        if (late.aborted) throw this.#frozenError(error);
      }
      await pause(THAW_AGAIN_MS, this.#never);
    }
  }

  /** Lets go of the agent. What is frozen stays so. */
  async close(): Promise<void> {
    const agent = this.#agent;
    this.#agent = undefined;
    await agent?.close();
  }

  #runOut(freeze: Freeze): void {
    freeze.overrun = true;
    const why = `The guest was not frozen: it took more than ${this.#budgetMs} ms`;
    freeze.run.abort(new AppError("source", "E_FREEZE", why));
    this.thaw().catch(() => undefined); // whoever asks for the thaw hears it
  }

  async #tryFreeze(signal: AbortSignal): Promise<number> {
    const agent = await this.#connected(signal);
    try {
      return await agent.freeze(signal);
    } catch (error) {
      if (!hasCode(error, "E_FROZEN")) throw error;
      await this.thawForSure();
      const message = `The guest was not frozen when it should: ${messageOf(error.cause)}`;
      throw new AppError("source", "E_FREEZE", message, { agent: this.#door.name }, error);
    }
  }

  async #takeDown(freeze: Freeze): Promise<Thawed> {
    try {
      const frozen = await freeze.frozen.then(
        () => true,
        (error: unknown) => hasCode(error, "E_FROZEN"),
      );
      if (frozen) await this.thawForSure();
    } catch (error) {
      freeze.thawing = undefined;
      throw error;
    }
    await this.#over(freeze);
    return this.#last;
  }

  async #over(freeze: Freeze): Promise<void> {
    if (this.#freeze !== freeze) return;
    this.#freeze = undefined;
    clearTimeout(freeze.budget);
    this.#last = { frozenMs: performance.now() - freeze.startedAt, overrun: freeze.overrun };
    await this.close();
  }

  async #connected(signal: AbortSignal): Promise<FreezingAgent> {
    if (this.#agent?.gone === false) return this.#agent;
    this.#agent = await this.#door.open(this.#budgetMs, signal);
    return this.#agent;
  }

  #frozenError(cause: unknown): AppError {
    const message =
      `The guest may stand frozen: ${this.#door.name} confirmed no thaw in ${THAW_LIMIT_MS / 1000} s; ` +
      `thaw it by hand (${this.#door.byHand})`;
    return new AppError("source", "E_FROZEN", message, { agent: this.#door.name }, cause);
  }
}
