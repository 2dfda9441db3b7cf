import { AppError, systemCode } from "../../errors.ts";
import { pause } from "../../flow/retry.ts";
import { QmpListener } from "./events.ts";
import { LineConnection, whyNotConnected, type LinePeer } from "./lines.ts";
import { parseQmpMessage, type QemuVersion } from "./messages.ts";
import { parseSchema, type QmpSchema } from "./schema.ts";

export interface QmpTiming {
  /** How long a monitor may take to greet; one that serves another client sends nothing. */
  readonly greetingMs: number;
  /** How long a command may take. */
  readonly commandMs: number;
}

export const DEFAULT_QMP_TIMING: QmpTiming = { greetingMs: 10_000, commandMs: 30_000 };

/** Bytes. A schema has 0.3 MB, the nodes of a VM with hundreds of images some MB. */
const LINE_MAX = 32 * 1024 * 1024;

/** Characters of QEMU's own words that a message repeats. */
const WORDS_MAX = 1000;

/** The pause before a monitor whose queue is full is asked again, in milliseconds. */
const QUEUE_FULL_MS = 50;

interface Call {
  readonly command: string;
  resolve(value: unknown): void;
  reject(reason: unknown): void;
}

/**
 * A client of QEMU's monitor (QMP). The monitor serves one client at a time: whoever is connected is alone with the
 * VM, as far as this monitor goes, and others wait in its queue without a word.
 *
 * States: waiting for the greeting and negotiating, both inside `connect`; ready; gone, which is final. Commands may
 * be sent side by side, QEMU executes them in the order sent. A command that is given up on, because its time is up
 * or the signal is aborted, was sent all the same: QEMU executes it before any later one, and its answer is dropped.
 *
 * No file descriptors go over this connection. Node can attach them (SCM_RIGHTS) to nothing but its own IPC channel,
 * so `getfd` and `add-fd` would take native code; what QEMU is to open must be at a path that its user may open.
 */
export class QmpClient {
  readonly path: string;
  readonly #lines: LineConnection;
  readonly #commandMs: number;
  readonly #greeted = Promise.withResolvers<QemuVersion>();
  /** Undefined until the greeting has come. */
  #version: QemuVersion | undefined;
  readonly #calls = new Map<number, Call>();
  /** Ids of commands whose answers nobody waits for any more. */
  readonly #abandoned = new Set<number>();
  readonly #listeners = new Set<QmpListener>();
  #lastId = 0;
  #schema: QmpSchema | undefined;

  private constructor(path: string, lines: LineConnection, commandMs: number) {
    this.path = path;
    this.#lines = lines;
    this.#commandMs = commandMs;
    this.#greeted.promise.catch(() => undefined); // `connect` hears it, if it still waits
    lines.start({ line: (bytes) => this.#take(bytes), gone: (reason) => this.#gone(reason) });
  }

  /**
   * @throws AppError E_QMP_CONNECT (source) when nobody is there; E_QMP_BUSY (locked) when it does not greet in time,
   *   which is how a monitor behaves that serves somebody else; E_QMP_PROTOCOL (source) when it is no QMP monitor;
   *   E_QMP_GONE (source) when it hangs up; E_QMP_COMMAND and E_QMP_TIMEOUT of the negotiation; the signal's reason.
   */
  static async connect(
    path: string,
    signal: AbortSignal,
    timing: Partial<QmpTiming> = {},
  ): Promise<QmpClient> {
    const { greetingMs, commandMs } = { ...DEFAULT_QMP_TIMING, ...timing };
    const late = AbortSignal.timeout(greetingMs);
    const either = AbortSignal.any([signal, late]);
    let lines: LineConnection | undefined;
    const giveUp = (): void => lines?.destroy(either.reason);
    either.addEventListener("abort", giveUp, { once: true });
    try {
      lines = await openMonitor(path, either);
      const client = new QmpClient(path, lines, commandMs);
      await client.#greeted.promise;
      either.removeEventListener("abort", giveUp);
      await client.execute("qmp_capabilities", undefined, signal);
      return client;
    } catch (error) {
      lines?.destroy(error);
      signal.throwIfAborted();
      if (error === late.reason) throw busyError(path, greetingMs);
      throw error;
    } finally {
      either.removeEventListener("abort", giveUp);
    }
  }

  get version(): QemuVersion {
    return this.#version!; // nobody has a client before it greeted
  }

  /**
   * @returns the command's return value, unchecked.
   * @throws AppError E_QMP_COMMAND (source) with QEMU's words, and `command`, `class` and `desc` in the context;
   *   E_QMP_TIMEOUT (source), after which the connection goes on; E_QMP_GONE (source), or whatever else ended the
   *   connection; the signal's reason.
   */
  async execute(command: string, args: object | undefined, signal: AbortSignal): Promise<unknown> {
    signal.throwIfAborted();
    if (this.#lines.failure !== undefined) throw this.#lines.failure.reason;
    const id = ++this.#lastId;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    const giveUp = (reason: unknown): void => {
      if (this.#calls.delete(id)) this.#abandoned.add(id);
      reject(reason);
    };
    const onAbort = (): void => giveUp(signal.reason);
    const timer = setTimeout(() => giveUp(this.#timeoutError(command)), this.#commandMs);
    signal.addEventListener("abort", onAbort, { once: true });
    this.#calls.set(id, { command, resolve, reject });
    this.#lines.send(`${JSON.stringify({ execute: command, arguments: args, id })}\n`);
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", onAbort);
    }
  }

  /** Open it before the command whose events are awaited, and close it. */
  listen(names: readonly string[]): QmpListener {
    const listener = new QmpListener(names, (left) => this.#listeners.delete(left));
    this.#listeners.add(listener);
    if (this.#lines.failure !== undefined) listener.fail(this.#lines.failure.reason);
    return listener;
  }

  /** What this QEMU can do; asked once and kept. @throws as `execute`; AppError E_QMP_PROTOCOL (source). */
  async schema(signal: AbortSignal): Promise<QmpSchema> {
    if (this.#schema !== undefined) return this.#schema;
    this.#schema = parseSchema(await this.execute("query-qmp-schema", undefined, signal));
    if (this.#schema === undefined) throw this.#lines.protocolError("sent a schema that cannot be read");
    return this.#schema;
  }

  /** Whoever still waits is told that the connection was closed. Safe to call twice. */
  close(): Promise<void> {
    return this.#lines.close();
  }

  #take(line: Buffer): void {
    const message = parseQmpMessage(line);
    if (message === undefined) throw this.#lines.protocolError(`sent what is not QMP: ${excerpt(line)}`);
    if (message.kind === "greeting") {
      this.#version = message.version;
      this.#greeted.resolve(message.version);
    } else if (message.kind === "event") {
      for (const listener of this.#listeners) listener.offer(message.event, line.length);
    } else {
      const call = this.#callOf(message.id, line);
      if (call === undefined) return;
      if (message.kind === "return") call.resolve(message.value);
      else call.reject(commandError(call.command, message));
    }
  }

  /** @returns undefined for an answer that nobody waits for any more. */
  #callOf(id: number | undefined, line: Buffer): Call | undefined {
    if (id !== undefined && this.#abandoned.delete(id)) return undefined;
    const call = id === undefined ? undefined : this.#calls.get(id);
    if (call === undefined) {
      throw this.#lines.protocolError(`answered a command that nobody gave: ${excerpt(line)}`);
    }
    this.#calls.delete(id!);
    return call;
  }

  #gone(reason: unknown): void {
    this.#greeted.reject(reason);
    for (const call of this.#calls.values()) call.reject(reason);
    this.#calls.clear();
    for (const listener of this.#listeners) listener.fail(reason);
  }

  #timeoutError(command: string): AppError {
    const message = `QEMU did not answer ${command} in ${this.#commandMs} ms; it or its storage may hang`;
    return new AppError("source", "E_QMP_TIMEOUT", message, { path: this.path, command });
  }
}

async function openMonitor(path: string, signal: AbortSignal): Promise<LineConnection> {
  const peer: LinePeer = {
    title: "QEMU's monitor",
    path,
    gone: "E_QMP_GONE",
    protocol: "E_QMP_PROTOCOL",
    lineMax: LINE_MAX,
  };
  for (;;) {
    try {
      return await LineConnection.open(peer, signal);
    } catch (error) {
      signal.throwIfAborted();
      if (systemCode(error) !== "EAGAIN") {
        const message = `Cannot connect to QEMU's monitor at ${path}: ${whyNotConnected(error)}`;
        throw new AppError("source", "E_QMP_CONNECT", message, { path }, error);
      }
      await pause(QUEUE_FULL_MS, signal); // even its queue is full: it serves one client, and some wait
    }
  }
}

function busyError(path: string, greetingMs: number): AppError {
  return new AppError(
    "locked",
    "E_QMP_BUSY",
    `QEMU's monitor at ${path} did not greet within ${greetingMs} ms: it serves another client; ` +
      "end that one, or give QEMU one more -qmp socket",
    { path },
  );
}

function commandError(command: string, said: { readonly class: string; readonly desc: string }): AppError {
  const desc = said.desc.slice(0, WORDS_MAX);
  return new AppError("source", "E_QMP_COMMAND", `QEMU refused ${command}: ${desc}`, {
    command,
    class: said.class.slice(0, WORDS_MAX),
    desc,
  });
}

/** The beginning of a line, fit for a message. */
function excerpt(line: Buffer): string {
  const text = line.toString("latin1", 0, 100);
  return JSON.stringify(line.length > 100 ? `${text}…` : text);
}
