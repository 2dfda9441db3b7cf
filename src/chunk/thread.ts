import { type ResourceLimits, Worker } from "node:worker_threads";
import { AppError, messageOf } from "../errors.ts";
import {
  READY,
  type Reply,
  type Request,
  type Results,
  type TaskName,
  type Tasks,
  type WorkerSetup,
} from "./worker-messages.ts";

/** Chunks live outside the heap; a small young generation also frees the codecs' buffers soon. */
const LIMITS: ResourceLimits = { maxYoungGenerationSizeMb: 1, maxOldGenerationSizeMb: 48 };

interface Call {
  readonly bytes: number;
  resolve(result: unknown): void;
  reject(reason: unknown): void;
}

/** One worker thread and the calls it has not answered. Dead is final. */
export class Thread {
  /** Resolves when the thread has loaded; rejects when it could not. */
  readonly ready: Promise<unknown>;
  /** Resolves when the thread has ended and every call has been settled. */
  readonly stopped: Promise<void>;
  readonly #worker: Worker;
  readonly #calls = new Map<number, Call>();
  readonly #idle: (() => void)[] = [];
  #lastCookie = READY;
  #load = 0;
  #reason: unknown;

  /**
   * @param entry the module the thread runs; it answers `Request`s by `Reply`s.
   * @param onDeath told at once when the thread fails or ends unasked; its calls are rejected when it has ended.
   */
  constructor(entry: URL, setup: WorkerSetup, onDeath: (failure: AppError) => void) {
    this.#worker = new Worker(entry, { workerData: setup, resourceLimits: LIMITS, execArgv: [] });
    this.ready = this.#expect(READY, 0);
    this.#worker.on("message", (reply: Reply) => this.#settle(reply));
    this.#worker.on("error", (error: unknown) => onDeath(death(messageOf(error), error)));
    this.stopped = new Promise((resolve) => {
      this.#worker.once("exit", (code) => {
        if (this.#reason === undefined) onDeath(death(`it ended with code ${code}`));
        for (const call of this.#calls.values()) call.reject(this.#reason);
        this.#calls.clear();
        this.#wake();
        resolve();
      });
    });
  }

  /** Bytes of work handed over and not answered. */
  get load(): number {
    return this.#load;
  }

  /**
   * @param bytes what the task is worth, for `load`. @param transfer what moves to the thread instead of being copied.
   * @throws AppError as the task threw it, or the reason given to `stop`.
   */
  call<Name extends TaskName>(
    name: Name,
    task: Tasks[Name],
    bytes: number,
    transfer: readonly ArrayBuffer[],
  ): Promise<Results[Name]> {
    const cookie = ++this.#lastCookie;
    this.#worker.postMessage({ cookie, name, task } satisfies Request<Name>, transfer);
    return this.#expect(cookie, bytes) as Promise<Results[Name]>;
  }

  /** Resolves when no call is under way. */
  idle(): Promise<void> {
    return this.#calls.size === 0 ? Promise.resolve() : new Promise((resolve) => this.#idle.push(resolve));
  }

  /** Ends the thread; when it has ended its calls are rejected with the reason. Safe to call twice; the first reason stays. */
  async stop(reason: unknown): Promise<void> {
    this.#reason ??= reason;
    await this.#worker.terminate();
    await this.stopped;
  }

  #expect(cookie: number, bytes: number): Promise<unknown> {
    this.#load += bytes;
    return new Promise((resolve, reject) => this.#calls.set(cookie, { bytes, resolve, reject }));
  }

  #settle(reply: Reply): void {
    const call = this.#calls.get(reply.cookie);
    if (call === undefined) return;
    this.#calls.delete(reply.cookie);
    this.#load -= call.bytes;
    if ("failure" in reply) {
      const { kind, code, message, context, cause } = reply.failure;
      call.reject(new AppError(kind, code, message, context, cause));
    } else {
      call.resolve(reply.result);
    }
    if (this.#calls.size === 0) this.#wake();
  }

  #wake(): void {
    for (const wake of this.#idle.splice(0)) wake();
  }
}

function death(why: string, cause?: unknown): AppError {
  return new AppError("bug", "E_CHUNK_WORKER", `A chunk worker thread died: ${why}`, {}, cause);
}
