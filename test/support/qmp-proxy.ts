import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { onTestFinished } from "vitest";

export interface ProxiedCommand {
  readonly execute: string;
  readonly arguments: Readonly<Record<string, unknown>> | undefined;
  /** Counts the commands that came, from 0; that of the negotiation left out. */
  readonly number: number;
}

/**
 * - `pass`    QEMU executes it and answers
 * - `refuse`  QEMU never sees it, the client gets an error
 * - `drop`    QEMU executes it, and the client's connection is gone instead of an answer
 */
export type Verdict = "pass" | "refuse" | "drop";

/** Stands between a client and QEMU's monitor, sees every command and decides what becomes of it. */
export class QmpProxy {
  readonly path: string;
  readonly commands: ProxiedCommand[] = [];
  /** Asked for each command before QEMU gets it. */
  decide: (command: ProxiedCommand) => Verdict | Promise<Verdict> = () => "pass";
  /** The arguments that QEMU gets in place of a command's own. */
  rewrite: (command: ProxiedCommand) => ProxiedCommand["arguments"] = (command) => command.arguments;
  /** Told of each answer before the client gets it. */
  answered: (command: ProxiedCommand) => void | Promise<void> = () => undefined;

  /** Keeps QEMU's events from the clients. */
  dropEvents = false;
  readonly #server: Server;
  readonly #clients = new Set<Socket>();
  #folder: string | undefined;

  private constructor(path: string, server: Server) {
    this.path = path;
    this.#server = server;
  }

  /** It goes when the test ends. @param path as for `open`. */
  static async start(monitor: string, path?: string): Promise<QmpProxy> {
    const proxy = await QmpProxy.open(monitor, path);
    onTestFinished(() => proxy.close());
    return proxy;
  }

  /** The caller closes it. @param path of its socket; in a folder of its own unless told. */
  static async open(monitor: string, path?: string): Promise<QmpProxy> {
    const folder = path === undefined ? await mkdtemp(join(tmpdir(), "blockhaul-proxy-")) : undefined;
    const server = createServer((client) => proxy.#join(client, connect(monitor)));
    const proxy = new QmpProxy(path ?? join(folder!, "qmp.sock"), server);
    proxy.#folder = folder;
    server.listen(proxy.path);
    await once(server, "listening");
    return proxy;
  }

  /** Nobody can connect any more, as when QEMU has ended. */
  vanish(): void {
    this.#server.close();
  }

  /** Safe to call twice. */
  async close(): Promise<void> {
    this.vanish();
    this.hangUp();
    if (this.#folder !== undefined) await rm(this.#folder, { recursive: true, force: true });
  }

  /** Forgets what it was told to do, and what it saw. */
  reset(): void {
    this.commands.length = 0;
    this.dropEvents = false;
    this.decide = () => "pass";
    this.answered = () => undefined;
    this.rewrite = (command) => command.arguments;
  }

  /** The clients lose their connections. */
  hangUp(): void {
    for (const client of this.#clients) client.destroy();
  }

  #join(client: Socket, qemu: Socket): void {
    this.#clients.add(client);
    for (const socket of [client, qemu]) socket.on("error", () => undefined);
    const waiting = new Map<unknown, { command: ProxiedCommand; verdict: Verdict }>();
    client.on("close", () => {
      this.#clients.delete(client);
      qemu.destroy();
    });
    qemu.on("close", () => client.destroy());
    eachLine(client, async (line) => {
      const message = JSON.parse(line) as {
        execute: string;
        arguments?: Record<string, unknown>;
        id: unknown;
      };
      if (message.execute === "qmp_capabilities") {
        qemu.write(`${line}\n`);
        return;
      }
      const command = {
        execute: message.execute,
        arguments: message.arguments,
        number: this.commands.length,
      };
      this.commands.push(command);
      const verdict = await this.decide(command);
      if (verdict === "refuse") {
        const error = { class: "GenericError", desc: "refused for a test" };
        client.write(`${JSON.stringify({ error, id: message.id })}\n`);
        return;
      }
      waiting.set(message.id, { command, verdict });
      qemu.write(`${JSON.stringify({ ...message, arguments: this.rewrite(command) })}\n`);
    });
    eachLine(qemu, async (line) => {
      const message = JSON.parse(line) as { id?: unknown; event?: unknown };
      if (message.event !== undefined && this.dropEvents) return;
      const answers = message.id === undefined ? undefined : waiting.get(message.id);
      if (answers !== undefined) {
        waiting.delete(message.id);
        await this.answered(answers.command);
        if (answers.verdict === "drop") {
          client.destroy();
          return;
        }
      }
      client.write(`${line}\n`);
    });
  }
}

/** One after the other. */
function eachLine(socket: Socket, take: (line: string) => Promise<void>): void {
  let rest = "";
  let turn = Promise.resolve();
  socket.setEncoding("utf8").on("data", (text) => {
    const lines = (rest + String(text)).split("\n");
    rest = lines.pop()!;
    for (const line of lines) {
      if (line.trim() !== "") turn = turn.then(() => take(line.trim()));
    }
  });
}
