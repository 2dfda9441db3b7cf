import type { Socket } from "node:net";
import { startLineServer, type LineServer } from "./line-server.ts";

export interface MonitorCommand {
  readonly execute: string;
  readonly arguments: unknown;
  readonly id: number;
}

export interface FakeMonitor extends LineServer {
  /** The commands so far, but for qmp_capabilities. */
  readonly commands: MonitorCommand[];
  event(event: string, data?: object): void;
}

export const GREETING =
  '{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}\r\n';

export interface MonitorScript {
  /** In place of the greeting; "" for none. */
  readonly greeting?: string;
  /** In place of the answer to qmp_capabilities. */
  readonly capabilities?: (id: number) => string;
  /** Answers a command; without a result it stays without an answer. */
  readonly command?: (
    command: MonitorCommand,
  ) => { return: unknown } | { error: object } | string | undefined;
}

/** A monitor that greets and negotiates as QEMU does, and then does what the script says. */
export async function startFakeMonitor(script: MonitorScript = {}): Promise<FakeMonitor> {
  const commands: MonitorCommand[] = [];
  const obey = (command: MonitorCommand, socket: Socket): void => {
    if (command.execute === "qmp_capabilities") {
      socket.write(script.capabilities?.(command.id) ?? `{"return": {}, "id": ${command.id}}\r\n`);
      return;
    }
    commands.push(command);
    const answer = script.command?.(command);
    if (typeof answer === "string") socket.write(answer);
    else if (answer !== undefined) socket.write(`${JSON.stringify({ ...answer, id: command.id })}\r\n`);
  };
  const server = await startLineServer({
    connected: (socket) => void socket.write(script.greeting ?? GREETING),
    line: (line, socket) => obey(JSON.parse(line.toString()) as MonitorCommand, socket),
  });
  return Object.defineProperties(server, {
    commands: { value: commands },
    event: {
      value: (event: string, data: object = {}) =>
        server.send(
          `${JSON.stringify({ timestamp: { seconds: 1700000000, microseconds: 250000 }, event, data })}\r\n`,
        ),
    },
  }) as FakeMonitor;
}
