import { AppError, hasCode, messageOf } from "../errors.ts";
import { pause } from "../flow/retry.ts";
import type { AgentDoor, FreezingAgent } from "../qemu/guard/frozen-guest.ts";
import type { DomainHandle } from "./domain.ts";

/** How long the agent may take for anything but freezing, milliseconds. */
const ANSWER_MS = 5000;

/** How long a freeze that failed is tried to be taken back at once. */
const TAKE_BACK_MS = 10_000;
const TAKE_BACK_STEP_MS = 200;

/** What `guest-agent-timeout` takes for libvirt's own: it waits without limit. */
const BLOCK = "-2";

const never = new AbortController().signal;

/**
 * The agent of a domain's guest, which libvirt has to itself. It serves whoever asks libvirt, one after the other.
 *
 * Libvirt waits for an agent without limit unless it is told otherwise, so it is told, and back when this is closed.
 * What was set before cannot be asked: it goes back to libvirt's own.
 */
export class DomainAgent implements FreezingAgent {
  /** Each command is a call of its own: there is no connection that could be over. */
  readonly gone = false;
  readonly #domain: DomainHandle;

  private constructor(domain: DomainHandle) {
    this.#domain = domain;
  }

  /**
   * @param freezeMs how long freezing may take: the guest writes out its caches first.
   * @throws AppError E_AGENT_CONNECT (source) when the domain does not run; as `Virsh.run`.
   */
  static async open(domain: DomainHandle, freezeMs: number, signal: AbortSignal): Promise<DomainAgent> {
    signal.throwIfAborted();
    const agent = new DomainAgent(domain);
    const seconds = Math.ceil(Math.max(freezeMs, ANSWER_MS) / 1000);
    await agent.#patience(String(seconds)).catch((error: unknown) => agent.#orGone(error));
    return agent;
  }

  /**
   * A guest that stands frozen refuses to tell the time, and one that does not tells it: so it is asked for that. Only
   * when it refuses is the agent asked itself, for a domain of which somebody does so libvirt marks as tainted.
   */
  async status(signal: AbortSignal): Promise<"frozen" | "thawed"> {
    try {
      await this.#domain.ask("domtime", [], signal);
      return "thawed";
    } catch (error) {
      if (!hasCode(error, "E_LIBVIRT")) throw error;
    }
    const command = JSON.stringify({ execute: "guest-fsfreeze-status" });
    const answer = await this.#domain.ask("qemu-agent-command", ["--cmd", command], signal);
    return /"return":\s*"frozen"/.test(answer) ? "frozen" : "thawed";
  }

  /**
   * Freezes the guest's file systems. An agent that does not answer is not told to: the command would wait in the guest
   * and be obeyed when nobody is there to thaw.
   */
  async freeze(signal: AbortSignal): Promise<number> {
    const status = await this.status(signal)
      .catch((error: unknown) => this.#orGone(error))
      .catch((error: unknown) => {
        signal.throwIfAborted();
        throw this.#notFrozen(messageOf(error), error);
      });
    if (status === "frozen") throw this.#notFrozen("somebody else has frozen it");
    let why: unknown;
    try {
      const count = countIn(await this.#domain.change("domfsfreeze"));
      if (count > 0 && !signal.aborted) return count;
      why = "it has no file system that could be";
    } catch (error) {
      why = error;
    }
    await this.#takeBack();
    signal.throwIfAborted();
    throw this.#notFrozen(messageOf(why), why);
  }

  /**
   * Thaws all file systems, whoever froze them, and makes sure of it.
   *
   * @throws AppError E_AGENT_CONNECT (source): the domain does not run, and the guest with it.
   */
  async thaw(signal: AbortSignal): Promise<number> {
    const said = await this.#domain.change("domfsthaw").catch((error: unknown) => this.#orGone(error));
    const count = countIn(said);
    if ((await this.status(signal)) === "thawed") return count;
    throw new AppError("source", "E_AGENT_COMMAND", "The guest says that it is thawed, and stands frozen");
  }

  /** Never throws. */
  async close(): Promise<void> {
    await this.#patience(BLOCK).catch(() => undefined); // the domain is gone, or the next run sets it again
  }

  async #patience(seconds: string): Promise<void> {
    await this.#domain.change("guest-agent-timeout", ["--timeout", seconds]);
  }

  /** The freeze may have been done, or still wait in the guest. @throws AppError E_FROZEN (source). */
  async #takeBack(): Promise<void> {
    const until = performance.now() + TAKE_BACK_MS;
    for (;;) {
      try {
        await this.thaw(never);
        return;
      } catch (error) {
        if (hasCode(error, "E_AGENT_CONNECT")) return;
        if (performance.now() >= until) {
          const message = `A freeze failed and was not taken back: the guest may be frozen; ${messageOf(error)}`;
          throw new AppError("source", "E_FROZEN", message, {}, error);
        }
      }
      await pause(TAKE_BACK_STEP_MS, never);
    }
  }

  /** Of a domain that is paused libvirt says that it does not run, too, and its guest may stand frozen. */
  async #orGone(error: unknown): Promise<never> {
    if (!hasCode(error, "E_DOMAIN_OFF") && !hasCode(error, "E_DOMAIN_UNKNOWN")) throw error;
    const { state } = await this.#domain.state(never);
    if (state === "paused") {
      throw new AppError("source", "E_AGENT_SILENT", "The guest is paused, and cannot answer", {}, error);
    }
    const message = `Domain ${this.#domain.name} does not run any more`;
    throw new AppError("source", "E_AGENT_CONNECT", message, {}, error);
  }

  #notFrozen(why: string, cause?: unknown): AppError {
    return new AppError("source", "E_FREEZE", `The guest was not frozen: ${why}`, {}, cause);
  }
}

/** The way to it for a guard. */
export function agentOf(domain: DomainHandle): AgentDoor {
  return {
    name: `the agent of domain ${domain.name}`,
    shared: true,
    byHand: `virsh domfsthaw ${domain.name}, or fsfreeze --unfreeze in the guest`,
    open: (freezeMs, signal) => DomainAgent.open(domain, freezeMs, signal),
  };
}

/** "Froze 2 filesystem(s)". */
function countIn(said: string): number {
  return Number(/(\d+) filesystem/.exec(said)?.[1] ?? 0);
}
