import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { onTestFinished } from "vitest";

/** Where a client of the monitor is held: before QEMU hears a command, or when QEMU has done it and answered. */
export interface MonitorPoint {
  readonly command: string;
  readonly when: "before" | "after";
}

/**
 * A monitor's socket that leads to QEMU's, and holds everything up at a point: for tests that do something to a
 * client right there. QEMU's own socket is connected just as long as the client is. It goes when the test ends.
 */
export class MonitorGate {
  readonly path: string;
  #point: MonitorPoint | undefined;
  #reached = Promise.withResolvers<undefined>();
  #opened = Promise.withResolvers<"release" | "drop">();
  readonly #sockets = new Set<Socket>();
  #refuse = (): void => undefined;

  private constructor(path: string) {
    this.path = path;
  }

  static async open(qmp: string): Promise<MonitorGate> {
    const folder = await mkdtemp(join(tmpdir(), "blockhaul-gate-"));
    const gate = new MonitorGate(join(folder, "qmp.sock"));
    const server = createServer((client) => {
      const monitor = connect(qmp);
      for (const socket of [client, monitor]) {
        gate.#sockets.add(socket);
        socket.on("close", () => gate.#sockets.delete(socket)).on("error", () => undefined);
      }
      client.on("close", () => monitor.destroy());
      monitor.on("close", () => client.destroy());
      void gate.#lead(client, monitor);
    });
    gate.#refuse = () => void server.close();
    server.listen(gate.path);
    await once(server, "listening");
    onTestFinished(async () => {
      gate.refuse();
      gate.drop();
      await rm(folder, { recursive: true, force: true });
    });
    return gate;
  }

  /** Resolves when a client is held there. */
  async arm(point: MonitorPoint): Promise<void> {
    this.#point = point;
    this.#reached = Promise.withResolvers();
    this.#opened = Promise.withResolvers();
    await this.#reached.promise;
  }

  /** What is held goes on. */
  release(): void {
    this.#point = undefined;
    this.#opened.resolve("release");
  }

  /** What is held is lost, and every connection ends: the client is dead. */
  drop(): void {
    this.#point = undefined;
    this.#opened.resolve("drop");
    this.#sockets.forEach((socket) => socket.destroy());
  }

  /** Nobody gets in any more, as when QEMU is dead. Who is in stays. */
  refuse(): void {
    this.#refuse();
  }

  /** The two directions: what one side says is held while the gate is shut, in order. */
  async #lead(client: Socket, monitor: Socket): Promise<void> {
    let awaited: number | undefined; // the answer to hold
    await Promise.all([
      forward(client, monitor, async (line) => {
        const { execute, id } = JSON.parse(line) as { execute: string; id: number };
        if (execute !== this.#point?.command) return;
        if (this.#point.when === "after") awaited = id;
        else await this.#hold();
      }),
      forward(monitor, client, async (line) => {
        if (awaited === undefined || (JSON.parse(line) as { id?: number }).id !== awaited) return;
        awaited = undefined;
        await this.#hold();
      }),
    ]);
  }

  async #hold(): Promise<void> {
    this.#reached.resolve(undefined);
    if ((await this.#opened.promise) === "drop") throw new Error("dropped");
  }
}

async function forward(from: Socket, to: Socket, look: (line: string) => Promise<void>): Promise<void> {
  let rest = "";
  try {
    for await (const piece of from.setEncoding("utf8")) {
      const lines = (rest + String(piece)).split("\n");
      rest = lines.pop()!;
      for (const line of lines) {
        await look(line);
        to.write(`${line}\n`);
      }
    }
  } catch {
    // dropped, or one side has gone
  }
}
