import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

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
  /** Safe to call twice. */
  readonly close: () => Promise<void>;

  private constructor(path: string, close: () => Promise<void>) {
    this.path = path;
    this.close = close;
  }

  /** The caller closes it. */
  static async open(agent: string): Promise<AgentProxy> {
    const folder = await mkdtemp(join(tmpdir(), "blockhaul-proxy-"));
    const sockets = new Set<Socket>();
    const server = createServer((client) => {
      const guest = connect(agent);
      for (const socket of [client, guest]) {
        sockets.add(socket);
        socket.on("error", () => undefined).on("close", () => sockets.delete(socket));
      }
      proxy.#join(client, guest);
    });
    const proxy = new AgentProxy(join(folder, "agent.sock"), async () => {
      sockets.forEach((socket) => socket.destroy());
      server.close();
      await rm(folder, { recursive: true, force: true });
    });
    server.listen(proxy.path);
    await once(server, "listening");
    return proxy;
  }

  reset(): void {
    this.seen = () => undefined;
    this.answered = () => undefined;
  }

  #join(client: Socket, guest: Socket): void {
    const waiting: string[] = [];
    client.on("close", () => guest.destroy());
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
