import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";

const SYNC = "guest-sync-delimited";
/** Begins a sync and its answer, and stands nowhere else. */
const DELIMITER = "\xff";

type Hook = (command: string) => unknown;

/** Stands between a client and the guest agent's socket, and sees every command and its answer. */
export class AgentProxy {
  readonly path: string;
  /** Told of each command before the agent gets it. */
  seen: Hook = () => undefined;
  /** Told of each command that was answered, before the client gets the answer. */
  answered: Hook = () => undefined;
  readonly #server: Server;
  readonly #clients = new Set<Socket>();

  private constructor(path: string, server: Server) {
    this.path = path;
    this.#server = server;
  }

  /** The caller closes it. @param path of its socket. */
  static async open(agent: string, path: string): Promise<AgentProxy> {
    const server = createServer((client) => proxy.#join(client, connect(agent)));
    const proxy = new AgentProxy(path, server);
    server.listen(path);
    await once(server, "listening");
    return proxy;
  }

  /** Nobody can connect any more, as when QEMU has ended. */
  vanish(): void {
    this.#server.close();
  }

  /** Safe to call twice. */
  close(): void {
    this.vanish();
    for (const client of this.#clients) client.destroy();
  }

  reset(): void {
    this.seen = () => undefined;
    this.answered = () => undefined;
  }

  #join(client: Socket, guest: Socket): void {
    const waiting: string[] = [];
    this.#clients.add(client);
    for (const socket of [client, guest]) socket.on("error", () => undefined);
    client.on("close", () => {
      this.#clients.delete(client);
      guest.destroy();
    });
    guest.on("close", () => client.destroy());
    eachLine(client, async (line) => {
      const { execute } = JSON.parse(line.slice(line.lastIndexOf(DELIMITER) + 1)) as { execute: string };
      await this.seen(execute);
      waiting.push(execute);
      guest.write(`${line}\n`, "latin1");
    });
    eachLine(guest, async (line) => {
      // before it answers a sync, the agent complains of the delimiter
      const answers = waiting[0] !== SYNC || line.includes(DELIMITER) ? waiting.shift() : undefined;
      if (answers !== undefined) await this.answered(answers);
      client.write(`${line}\n`, "latin1");
    });
  }
}

/** One after the other. */
function eachLine(socket: Socket, take: (line: string) => Promise<void>): void {
  let rest = "";
  let turn = Promise.resolve();
  socket.setEncoding("latin1").on("data", (text) => {
    const lines = (rest + String(text)).split("\n");
    rest = lines.pop()!;
    for (const line of lines) {
      if (line.trim() !== "") turn = turn.then(() => take(line.trim()));
    }
  });
}
