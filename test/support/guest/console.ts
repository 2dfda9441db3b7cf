import { once } from "node:events";
import { connect, type Socket } from "node:net";
import type { Readable } from "node:stream";

/** Of a command: its line must fit the guest's terminal buffer. */
const COMMAND_MAX = 2800;
const LOG_MAX = 1024 * 1024;

interface Answer {
  readonly status: number;
  readonly output: string;
}

/**
 * The guest's two serial ports: the first, read here from QEMU's standard output, tells what happens (kernel, boot,
 * writer); on the second a root shell takes one command after the other (root/bin/console says how).
 */
export class GuestConsole {
  /** What the first port said, its newest MiB. */
  log = "";
  readonly #path: string;
  /** Rejects when QEMU has ended. Everything that waits, waits for this too. */
  readonly #gone: Promise<never>;
  readonly #watchers = new Set<() => void>();
  readonly #answers = new Map<string, (answer: Answer) => void>();
  #socket: Socket | undefined;
  #lastId = 0;

  /** @param exited settles when QEMU has ended. */
  constructor(log: Readable, path: string, exited: Promise<unknown>) {
    this.#path = path;
    this.#gone = exited.then((exit) => {
      throw new Error(`QEMU has ended: ${JSON.stringify(exit)}`);
    });
    this.#gone.catch(() => undefined); // only of interest to those who wait
    log.setEncoding("utf8").on("data", (text: string) => {
      this.log = (this.log + text).slice(-LOG_MAX);
      for (const look of this.#watchers) look();
    });
  }

  /**
   * Waits until the first port has said something that matches, what it said before the call included. Whole lines only:
   * a line that is still on its way is not looked at.
   */
  async waitFor(pattern: RegExp, limitMs = 20_000): Promise<RegExpExecArray> {
    const found = Promise.withResolvers<RegExpExecArray>();
    const look = (): void => {
      const match = pattern.exec(this.log.slice(0, this.log.lastIndexOf("\n") + 1));
      if (match !== null) found.resolve(match);
    };
    this.#watchers.add(look);
    look();
    try {
      return await this.#bounded(found.promise, limitMs, `no ${String(pattern)}`);
    } finally {
      this.#watchers.delete(look);
    }
  }

  /** Opens the second port. To be called once, when the guest is up. */
  async connect(): Promise<void> {
    const socket = connect(this.#path).setEncoding("utf8");
    socket.on("error", () => undefined); // the exit of QEMU, which everyone who waits is told of
    this.#socket = socket;
    await once(socket, "connect");
    let rest = "";
    socket.on("data", (text) => {
      const lines = (rest + String(text)).split("\n");
      rest = lines.pop()!;
      for (const line of lines) {
        const [id = "", status = "", output = ""] = line.trim().split(" ");
        this.#answers.get(id)?.({ status: Number(status), output: Buffer.from(output, "base64").toString() });
      }
    });
  }

  /**
   * Runs a command of the guest's busybox shell as root. One at a time: a command that hangs, as one does that writes
   * to a frozen file system, keeps all others waiting. End it with `&` then.
   *
   * @returns what it printed, both streams, without the last line's end; at most its last 64 KiB.
   * @throws Error when it fails, or does not end within `limitMs`.
   */
  async run(command: string, limitMs = 20_000): Promise<string> {
    if (Buffer.byteLength(command) > COMMAND_MAX)
      throw new Error(`command is longer than ${COMMAND_MAX} bytes`);
    const id = String(++this.#lastId);
    const answered = Promise.withResolvers<Answer>();
    this.#answers.set(id, answered.resolve);
    this.#socket?.write(`${id} ${Buffer.from(command).toString("base64")}\n`);
    try {
      const answer = await this.#bounded(answered.promise, limitMs, `no end of "${command}"`);
      const output = answer.output.replace(/\n$/, "");
      if (answer.status !== 0) throw new Error(`"${command}" exited with ${answer.status}: ${output}`);
      return output;
    } finally {
      this.#answers.delete(id);
    }
  }

  close(): void {
    this.#socket?.destroy();
  }

  async #bounded<T>(wanted: Promise<T>, limitMs: number, failure: string): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, fail) => {
      timer = setTimeout(
        () => fail(new Error(`${failure} in ${limitMs} ms; the log ends with: ${this.log.slice(-500)}`)),
        limitMs,
      );
    });
    try {
      return await Promise.race([wanted, this.#gone, late]);
    } finally {
      clearTimeout(timer);
    }
  }
}
