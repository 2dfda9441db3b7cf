import { AppError, hasCode, messageOf } from "../errors.ts";
import { AgentChannel, within } from "./agent-channel.ts";

export interface AgentTiming {
  /** How long the agent may take to answer a sync; one that does not run answers nothing. */
  readonly syncMs: number;
  /** How long freezing may take: the guest writes out its caches first. */
  readonly freezeMs: number;
  /** How long anything else may take. */
  readonly commandMs: number;
}

export const DEFAULT_AGENT_TIMING: AgentTiming = { syncMs: 3000, freezeMs: 5000, commandMs: 10_000 };

const FREEZE = "guest-fsfreeze-freeze";
const THAW = "guest-fsfreeze-thaw";
const STATUS = "guest-fsfreeze-status";

/**
 * A client of the QEMU guest agent, over the socket that QEMU made for its channel. The socket serves one client: a
 * second one can connect, and hears nothing.
 *
 * There is a delimited sync at the beginning, after anything that got no answer, and before each freeze: a freeze
 * that is sent while no agent runs waits in the guest's channel and is executed when one comes, with nobody there to
 * thaw. Commands run one after the other.
 */
export class GuestAgent {
  readonly #channel: AgentChannel;
  readonly #timing: AgentTiming;

  private constructor(channel: AgentChannel, timing: AgentTiming) {
    this.#channel = channel;
    this.#timing = timing;
  }

  /**
   * Connects and syncs.
   *
   * @throws AppError E_AGENT_CONNECT (source) when there is no such channel; E_AGENT_SILENT (source) when no agent
   *   answers; E_AGENT_GONE, E_AGENT_PROTOCOL (source); the signal's reason.
   */
  static async connect(
    path: string,
    signal: AbortSignal,
    timing: Partial<AgentTiming> = {},
  ): Promise<GuestAgent> {
    const all = { ...DEFAULT_AGENT_TIMING, ...timing };
    const channel = await AgentChannel.open(path, all.syncMs, signal);
    const agent = new GuestAgent(channel, all);
    try {
      await channel.turn(signal, () => agent.#sync(signal));
      return agent;
    } catch (error) {
      channel.destroy(error);
      throw error;
    }
  }

  get path(): string {
    return this.#channel.path;
  }

  /** True once the connection is over: nothing will be answered any more. */
  get gone(): boolean {
    return this.#channel.gone;
  }

  /** @throws AppError E_AGENT_COMMAND, E_AGENT_SILENT, E_AGENT_GONE, E_AGENT_PROTOCOL (source); the signal's reason. */
  async status(signal: AbortSignal): Promise<"frozen" | "thawed"> {
    return this.#channel.turn(signal, () => this.#status(signal));
  }

  /**
   * Freezes the guest's file systems, those that are frozen already left out.
   *
   * When it fails, for whatever reason, a thaw is sent behind it and its answer awaited.
   *
   * @returns the number of file systems frozen by this call.
   * @throws AppError E_FREEZE (source) with the agent's own words, or because it took too long, or no agent is there:
   *   nothing is frozen. E_FROZEN (source): no thaw was confirmed; the guest may be frozen, or will be for a moment
   *   when its agent comes back. The signal's reason: nothing is frozen.
   */
  async freeze(signal: AbortSignal): Promise<number> {
    return this.#channel.turn(signal, async () => {
      await this.#sync(signal).catch((error: unknown) => {
        signal.throwIfAborted();
        throw this.#notFrozen(messageOf(error), error);
      });
      try {
        return this.#count(FREEZE, await this.#ask(FREEZE, this.#timing.freezeMs, signal));
      } catch (error) {
        await this.#takeBackFreeze();
        signal.throwIfAborted();
        const late = hasCode(error, "E_AGENT_SILENT");
        throw this.#notFrozen(
          late ? `it took more than ${this.#timing.freezeMs} ms` : messageOf(error),
          error,
        );
      }
    });
  }

  /**
   * Thaws all file systems, whoever froze them.
   *
   * @returns the number of those thawed; 0 when none was frozen, or when a hook of the guest failed after it, which is
   *   no error.
   * @throws AppError as `status`.
   */
  async thaw(signal: AbortSignal): Promise<number> {
    return this.#channel.turn(signal, () => this.#thawed(() => this.#command(THAW, signal), signal));
  }

  /** Whoever still waits is told that the connection was closed. Safe to call twice. */
  close(): Promise<void> {
    return this.#channel.close();
  }

  /** Whoever has the turn. @throws as `status`. */
  async #status(signal: AbortSignal): Promise<"frozen" | "thawed"> {
    const answer = await this.#command(STATUS, signal);
    if (answer === "frozen" || answer === "thawed") return answer;
    throw this.#unexpected(STATUS, answer);
  }

  /**
   * The agent thaws and then runs the guest's hook: when that fails, its answer is as if the thaw had.
   *
   * @param answer to a thaw.
   */
  async #thawed(answer: () => Promise<unknown>, signal: AbortSignal): Promise<number> {
    try {
      return this.#count(THAW, await answer());
    } catch (error) {
      if (!hasCode(error, "E_AGENT_COMMAND") || (await this.#status(signal)) !== "thawed") throw error;
      return 0;
    }
  }

  async #command(command: string, signal: AbortSignal): Promise<unknown> {
    if (!this.#channel.synced) await this.#sync(signal);
    return this.#ask(command, this.#timing.commandMs, signal);
  }

  /** Sends one command on a channel in sync and reads its answer. */
  async #ask(command: string, ms: number, signal: AbortSignal): Promise<unknown> {
    signal.throwIfAborted();
    this.#channel.send(command);
    return within(this.path, ms, signal, (either) => this.#channel.answer(command, either));
  }

  async #sync(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const id = this.#channel.sendSync();
    await within(this.path, this.#timing.syncMs, signal, (either) => this.#channel.syncAnswer(id, either));
  }

  /**
   * The freeze may have been done, or still wait in the guest. Its thaw goes out at once, without waiting for
   * anything, so that an agent that comes back later does both. The caller's signal does not stop this.
   *
   * @throws AppError E_FROZEN (source).
   */
  async #takeBackFreeze(): Promise<void> {
    const { syncMs, commandMs } = this.#timing;
    const id = this.#channel.sendSync();
    this.#channel.send(THAW);
    try {
      await within(this.path, syncMs + commandMs, undefined, async (late) => {
        await this.#channel.syncAnswer(id, late);
        await this.#thawed(() => this.#channel.answer(THAW, late), late);
      });
    } catch (error) {
      const message = `A freeze failed and was not taken back: the guest may be frozen; ${messageOf(error)}`;
      throw new AppError("source", "E_FROZEN", message, { path: this.path }, error);
    }
  }

  #count(command: string, answer: unknown): number {
    if (typeof answer === "number" && Number.isSafeInteger(answer) && answer >= 0) return answer;
    throw this.#unexpected(command, answer);
  }

  #unexpected(command: string, answer: unknown): AppError {
    return this.#channel.protocolError(`answered ${command} with ${JSON.stringify(answer).slice(0, 100)}`);
  }

  #notFrozen(why: string, cause: unknown): AppError {
    return new AppError("source", "E_FREEZE", `The guest was not frozen: ${why}`, { path: this.path }, cause);
  }
}
