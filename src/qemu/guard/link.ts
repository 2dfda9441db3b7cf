import { fork, type ChildProcess } from "node:child_process";
import { AppError, messageOf } from "../../errors.ts";
import {
  errorFrom,
  type FromGuard,
  type GuardAnswers,
  type GuardCall,
  type GuardSetup,
  type ToGuard,
} from "./messages.ts";

/** How long a new guard may take to say anything: it loads, on a host that may be busy. */
const LOAD_MS = 60_000;

/** How long one that runs may take to say that it has heard: a guest may stand frozen meanwhile. */
const HEAR_MS = 5000;

/** How long a call may take; each is bounded to less by the guard itself. */
const ANSWER_MS = 300_000;

/** How long one may take to go. */
const LEAVE_MS = 5000;

interface Waiting {
  heard(): void;
  resolve(answer: unknown): void;
  reject(reason: unknown): void;
}

/** The guard's process and what is said to it. One that does not answer in time is killed: dead is final. */
export class GuardLink {
  /** When the process has ended, asked to or not: AppError E_GUARD (source) that says how. */
  readonly ended: Promise<AppError>;
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, Waiting>();
  #lastId = 0;
  #end: AppError | undefined;
  #signs: NodeJS.Timeout | undefined;
  #signUnderWay = false;

  /**
   * Starts the process in a session of its own, which no signal of our terminal reaches.
   *
   * @param entry its program, which runs a `GuardProcess`.
   */
  constructor(entry: URL) {
    this.#child = fork(entry, {
      detached: true,
      stdio: ["ignore", "ignore", "ignore", "ipc"],
      execArgv: [],
    });
    this.#child.on("message", (message) => this.#hear(message as FromGuard));
    this.ended = new Promise((resolve) => {
      const end = (how: string, cause?: unknown): void => resolve(this.#over(how, cause));
      this.#child.once("exit", (code, signal) => end(`ended (${signal ?? `exit code ${code}`})`));
      this.#child.once("error", (error) => end(`could not be started: ${messageOf(error)}`, error));
    });
    // It is to outlive us, not to keep us alive; calls have timers that do.
    this.#child.unref();
    this.#child.channel?.unref();
  }

  /** @throws AppError as the guard threw it; E_GUARD (source) when the guard ends. */
  async call<Name extends GuardCall>(
    call: Name,
    ...setup: Name extends "start" ? [GuardSetup] : []
  ): Promise<GuardAnswers[Name]> {
    if (this.#end !== undefined) throw this.#end;
    const id = ++this.#lastId;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    const kill = (): void => void this.#child.kill("SIGKILL");
    const deaf = setTimeout(kill, call === "start" ? LOAD_MS : HEAR_MS);
    const late = setTimeout(kill, ANSWER_MS);
    this.#waiting.set(id, { heard: () => clearTimeout(deaf), resolve, reject });
    this.#send({ id, call, setup: setup[0] } as ToGuard, () => undefined);
    try {
      return (await promise) as GuardAnswers[Name];
    } finally {
      clearTimeout(deaf);
      clearTimeout(late);
    }
  }

  /** Gives a sign of life now and then; whoever hangs gives none. */
  giveSigns(everyMs: number): void {
    this.#signs = setInterval(() => {
      if (this.#signUnderWay) return; // a guard that reads nothing would make us collect them
      this.#signUnderWay = true;
      this.#send("alive", () => (this.#signUnderWay = false));
    }, everyMs).unref();
  }

  /** Lets it go after `finish`. @param wait false when it still has work to do. */
  async release(wait: boolean): Promise<void> {
    clearInterval(this.#signs);
    if (this.#child.connected) this.#child.disconnect();
    if (!wait) return;
    const timer = setTimeout(() => this.#child.kill("SIGKILL"), LEAVE_MS);
    await this.ended;
    clearTimeout(timer);
  }

  async kill(): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.release(true);
  }

  #send(message: ToGuard, sent: () => void): void {
    if (this.#child.connected) this.#child.send(message, () => sent());
  }

  #hear(message: FromGuard): void {
    const waiting = this.#waiting.get(message.id);
    if (waiting === undefined) return;
    if ("heard" in message) {
      waiting.heard();
      return;
    }
    this.#waiting.delete(message.id);
    if ("failure" in message) waiting.reject(errorFrom(message.failure));
    else waiting.resolve(message.answer);
  }

  #over(how: string, cause: unknown): AppError {
    clearInterval(this.#signs);
    this.#end = new AppError("source", "E_GUARD", `The guard of this run ${how}`, {}, cause);
    for (const waiting of this.#waiting.values()) waiting.reject(this.#end);
    this.#waiting.clear();
    return this.#end;
  }
}
