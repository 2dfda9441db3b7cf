import { randomInt } from "node:crypto";
import { z } from "zod";
import { AppError, systemCode } from "../errors.ts";
import { Budget } from "../flow/budget.ts";
import { pause } from "../flow/retry.ts";
import { LineConnection, whyNotConnected, type LinePeer } from "./qmp/lines.ts";

/** Bytes. Our commands' answers are short, but the answer to a dead client's last command may come first. */
const LINE_MAX = 4 * 1024 * 1024;

/** Characters of the agent's own words that a message repeats. */
const WORDS_MAX = 1000;

/** The pause before a socket whose queue is full is asked again, in milliseconds. */
const QUEUE_FULL_MS = 50;

/** Begins a delimited sync and its answer. No JSON text has this byte, so whoever reads it starts anew. */
const DELIMITER = 0xff;

const refusalSchema = z.object({ error: z.object({ desc: z.string() }) });

type Answer = { readonly return: unknown } | { readonly error: { readonly desc: string } };

/**
 * What is said to a guest agent, and read from it, in turns. The agent's answers carry no ids, so which one belongs
 * to what is known by their order alone, and only as long as every command got its answer: that is being in sync.
 */
export class AgentChannel {
  readonly path: string;
  readonly #lines: LineConnection;
  readonly #turns = new Budget(1);
  #taken = false;
  #synced = false;
  /** Lines not looked at yet. Whoever has the turn reads until its answer comes, so there are never many. */
  readonly #inbox: Buffer[] = [];
  #wake: (() => void) | undefined;

  private constructor(path: string, lines: LineConnection) {
    this.path = path;
    this.#lines = lines;
    lines.start({ line: (bytes) => this.#take(bytes), gone: () => this.#wake?.() });
  }

  /** @throws AppError E_AGENT_CONNECT, E_AGENT_SILENT (source); the signal's reason. */
  static async open(path: string, ms: number, signal: AbortSignal): Promise<AgentChannel> {
    const peer: LinePeer = {
      title: "the guest agent",
      path,
      gone: "E_AGENT_GONE",
      protocol: "E_AGENT_PROTOCOL",
      lineMax: LINE_MAX,
    };
    const open = async (either: AbortSignal): Promise<AgentChannel> => {
      for (;;) {
        try {
          return new AgentChannel(path, await LineConnection.open(peer, either));
        } catch (error) {
          either.throwIfAborted();
          if (systemCode(error) !== "EAGAIN") {
            const message = `Cannot connect to the guest agent at ${path}: ${whyNotConnected(error)}`;
            throw new AppError("source", "E_AGENT_CONNECT", message, { path }, error);
          }
          await pause(QUEUE_FULL_MS, either); // it serves one client, and others wait
        }
      }
    };
    return within(path, ms, signal, open);
  }

  get synced(): boolean {
    return this.#synced;
  }

  /** True once the connection is over: nothing will be answered any more. */
  get gone(): boolean {
    return this.#lines.failure !== undefined;
  }

  /** Runs `work` when nobody else talks. */
  async turn<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    const leave = await this.#turns.take(1, signal);
    this.#taken = true;
    try {
      return await work();
    } finally {
      this.#taken = false;
      if (this.#inbox.splice(0).length > 0) this.#synced = false;
      leave();
    }
  }

  send(command: string, args?: object): void {
    this.#synced = false;
    this.#lines.send(`${JSON.stringify({ execute: command, arguments: args })}\n`);
  }

  /** @returns its id, for `syncAnswer`. */
  sendSync(): number {
    const id = randomInt(1, 2 ** 47);
    this.#lines.send(Uint8Array.of(DELIMITER));
    this.send("guest-sync-delimited", { id });
    return id;
  }

  /**
   * Waits for the answer to this sync and drops all that comes before: late answers, those to older syncs, and what
   * the agent says of a stray delimiter.
   *
   * @throws AppError E_AGENT_GONE or E_AGENT_PROTOCOL (source); the signal's reason.
   */
  async syncAnswer(id: number, signal: AbortSignal): Promise<void> {
    for (;;) {
      const line = await this.#next(signal);
      const start = line.lastIndexOf(DELIMITER);
      if (start < 0) continue;
      const answer = parseAnswer(line.subarray(start + 1));
      if (answer === undefined || !("return" in answer) || answer.return !== id) continue;
      this.#synced = true;
      return;
    }
  }

  /**
   * Reads the answer to the only command that has none.
   *
   * @throws AppError E_AGENT_COMMAND (source) with the agent's words; as `syncAnswer`.
   */
  async answer(command: string, signal: AbortSignal): Promise<unknown> {
    this.#synced = false;
    const answer = parseAnswer(await this.#next(signal));
    if (answer === undefined) {
      const error = this.protocolError(`answered ${command} with what is no answer`);
      this.#lines.destroy(error);
      throw error;
    }
    this.#synced = true;
    if ("return" in answer) return answer.return;
    const desc = answer.error.desc.slice(0, WORDS_MAX);
    throw new AppError("source", "E_AGENT_COMMAND", `The guest agent refused ${command}: ${desc}`, {
      command,
      desc,
    });
  }

  /** @param did "answered …". */
  protocolError(did: string): AppError {
    return this.#lines.protocolError(did);
  }

  close(): Promise<void> {
    return this.#lines.close();
  }

  destroy(reason: unknown): void {
    this.#lines.destroy(reason);
  }

  #take(line: Buffer): void {
    if (!this.#taken) {
      this.#synced = false; // nobody asked, so the next answer may not be what it seems
      return;
    }
    this.#inbox.push(line);
    this.#wake?.();
  }

  async #next(signal: AbortSignal): Promise<Buffer> {
    for (;;) {
      const line = this.#inbox.shift();
      if (line !== undefined) return line;
      if (this.#lines.failure !== undefined) throw this.#lines.failure.reason;
      signal.throwIfAborted();
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        signal.addEventListener("abort", () => resolve(), { once: true });
      });
    }
  }
}

/** Bounds what `work` may take. @throws AppError E_AGENT_SILENT (source) when it takes longer. */
export async function within<T>(
  path: string,
  ms: number,
  signal: AbortSignal | undefined,
  work: (either: AbortSignal) => Promise<T>,
): Promise<T> {
  const late = AbortSignal.timeout(ms);
  const either = signal === undefined ? late : AbortSignal.any([signal, late]);
  try {
    return await work(either);
  } catch (error) {
    if (error !== late.reason || !late.aborted) throw error;
    const message =
      `The guest agent at ${path} did not answer within ${ms} ms: it does not run in the guest, hangs, ` +
      "or serves another client";
    throw new AppError("source", "E_AGENT_SILENT", message, { path });
  }
}

function parseAnswer(line: Buffer): Answer | undefined {
  let value: unknown;
  try {
    value = JSON.parse(line.toString());
  } catch {
    return undefined;
  }
  if (value !== null && typeof value === "object" && "return" in value) return { return: value.return };
  return refusalSchema.safeParse(value).data;
}
