import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { onTestFinished } from "vitest";

const FILE_SYSTEMS = 2;
const REFUSED_WHILE_FROZEN = /^(?!guest-(sync|ping|info|fsfreeze-(status|thaw)))/;

/**
 * A guest agent behind QEMU's socket, with what both are known for: the socket serves one client and lets others
 * wait; what is sent while no agent runs, or while it is busy, is kept and executed later; answers carry no id; what
 * is sent to a client that left is lost. It goes when the test ends.
 */
export class FakeAgent {
  readonly path: string;
  /** Every command executed, in order. */
  readonly executed: string[] = [];
  frozen = false;
  /** What the next freeze answers in place of freezing: as a failing hook does. */
  freezeError: string | undefined;
  /** What each thaw answers, after it: as a hook that fails then does. */
  thawError: string | undefined;
  /** What the next command answers, as it is; after doing it. */
  answerInstead: string | undefined;
  /** How the connection ends instead of this command's answer. */
  hangUpAt: string | undefined;
  /** The command that it hangs in. */
  holding: string | undefined;
  /** Commands that wait for it. */
  queued = 0;
  /** Clients served so far. */
  clients = 0;
  readonly #queue: Socket[] = [];
  #active: Socket | undefined;
  #input: Buffer = Buffer.alloc(0);
  #running = true;
  #held: { readonly command: string; readonly after: boolean; readonly wait: Promise<void> } | undefined;
  #pumping = false;
  #changed: (() => void)[] = [];
  #stop = (): void => undefined;

  private constructor(path: string) {
    this.path = path;
  }

  static async start(): Promise<FakeAgent> {
    const folder = await mkdtemp(join(tmpdir(), "blockhaul-agent-"));
    const agent = new FakeAgent(join(folder, "qga.sock"));
    const sockets = new Set<Socket>();
    const server = createServer((socket) => {
      sockets.add(socket);
      socket.on("error", () => undefined).on("close", () => sockets.delete(socket));
      agent.#queue.push(socket.pause());
      agent.#serveNext();
    });
    server.listen(agent.path);
    await once(server, "listening");
    agent.#stop = () => {
      sockets.forEach((socket) => socket.destroy());
      server.close();
    };
    onTestFinished(async () => {
      agent.stop();
      await rm(folder, { recursive: true, force: true });
    });
    return agent;
  }

  /** QEMU ends, and its socket with it. */
  stop(): void {
    this.#stop();
  }

  /** The agent's process ends or comes back; the channel keeps what is sent meanwhile. */
  set running(running: boolean) {
    this.#running = running;
    void this.#pump();
  }

  /**
   * The agent hangs in this command, before it does it or between that and its answer.
   *
   * @returns lets it go on.
   */
  hold(command: string, when: "before" | "after" = "before"): () => void {
    const { promise, resolve } = Promise.withResolvers<undefined>();
    this.#held = { command, after: when === "after", wait: promise.then(() => (this.#held = undefined)) };
    return () => resolve(undefined);
  }

  /** Sends without being asked. */
  say(bytes: string | Uint8Array): void {
    this.#active?.write(bytes);
  }

  /** Ends the client's connection, as a QEMU that exits. */
  hangUp(): void {
    this.#active?.destroy();
  }

  /** Resolves when this holds; looked at after each command and each client. */
  async until(holds: (agent: FakeAgent) => boolean): Promise<void> {
    while (!holds(this)) await new Promise<void>((resolve) => this.#changed.push(resolve));
  }

  #serveNext(): void {
    if (this.#active !== undefined) return;
    const socket = this.#queue.shift();
    if (socket === undefined) return;
    this.#active = socket;
    this.clients++;
    socket.on("data", (bytes: Buffer) => {
      this.#input = Buffer.concat([this.#input, bytes]);
      this.queued = this.#input.filter((byte) => byte === 10).length;
      this.#tell();
      void this.#pump();
    });
    socket.on("close", () => {
      this.#active = undefined;
      this.#serveNext();
      this.#tell();
    });
    socket.resume();
    this.#tell();
  }

  async #pump(): Promise<void> {
    if (this.#pumping) return;
    this.#pumping = true;
    for (let end = this.#input.indexOf(10); this.#running && end >= 0; end = this.#input.indexOf(10)) {
      const line = this.#input.subarray(0, end);
      this.#input = this.#input.subarray(end + 1);
      this.queued--;
      await this.#execute(line);
      this.#tell();
    }
    this.#pumping = false;
  }

  async #execute(line: Buffer): Promise<void> {
    const delimiter = line.lastIndexOf(0xff);
    if (delimiter >= 0) {
      this.#answer({ error: { class: "GenericError", desc: "JSON parse error, stray '\uFFFD'" } });
    }
    const { execute, arguments: args } = JSON.parse(line.subarray(delimiter + 1).toString()) as {
      execute: string;
      arguments?: { id?: number };
    };
    const held = this.#held?.command === execute ? this.#held : undefined;
    if (held?.after === false) await this.#hang(held);
    this.executed.push(execute);
    const answer = this.#do(execute, args?.id);
    if (held?.after === true) await this.#hang(held);
    if (this.hangUpAt === execute) {
      this.hangUpAt = undefined;
      this.#active?.destroy();
    } else if (this.answerInstead !== undefined && execute !== "guest-sync-delimited") {
      this.#active?.write(this.answerInstead);
      this.answerInstead = undefined;
    } else this.#answer(answer, execute === "guest-sync-delimited");
  }

  async #hang({ command, wait }: { command: string; wait: Promise<void> }): Promise<void> {
    this.holding = command;
    this.#tell();
    await wait;
    this.holding = undefined;
  }

  #do(command: string, id: number | undefined): object {
    const refuse = (cls: string, desc: string): object => ({ error: { class: cls, desc } });
    if (this.frozen && REFUSED_WHILE_FROZEN.test(command)) {
      const desc = `Command ${command} has been disabled: the agent is in frozen state`;
      return refuse("CommandNotFound", desc);
    }
    switch (command) {
      case "guest-sync-delimited":
        return { return: id };
      case "guest-fsfreeze-status":
        return { return: this.frozen ? "frozen" : "thawed" };
      case "guest-fsfreeze-freeze": {
        const error = this.freezeError;
        if (error !== undefined) {
          this.freezeError = undefined;
          return refuse("GenericError", error);
        }
        this.frozen = true;
        return { return: FILE_SYSTEMS };
      }
      case "guest-fsfreeze-thaw": {
        const thawed = this.frozen ? FILE_SYSTEMS : 0;
        this.frozen = false;
        return this.thawError === undefined ? { return: thawed } : refuse("GenericError", this.thawError);
      }
      default:
        return refuse("CommandNotFound", `The command ${command} has not been found`);
    }
  }

  #answer(answer: object, delimited = false): void {
    if (delimited) this.#active?.write(Uint8Array.of(0xff));
    this.#active?.write(`${JSON.stringify(answer)}\n`);
  }

  #tell(): void {
    for (const wake of this.#changed.splice(0)) wake();
  }
}
