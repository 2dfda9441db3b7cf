import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { onTestFinished } from "vitest";

export interface LineServer {
  readonly path: string;
  /** Every line of every client so far, as it came, without its end. */
  readonly lines: readonly Buffer[];
  /** Connections so far. */
  readonly connections: number;
  /** Sends to every client. */
  send(bytes: string | Uint8Array): void;
  /** Resolves when so many lines have come. */
  received(count: number): Promise<void>;
  /** Hangs up on every client. */
  drop(): void;
}

export interface LineScript {
  connected?(socket: Socket): void;
  line?(line: Buffer, socket: Socket): void;
}

/** A peer on a Unix socket of its own that does what the script says. It goes when the test ends. */
export async function startLineServer(script: LineScript): Promise<LineServer> {
  const folder = await mkdtemp(join(tmpdir(), "blockhaul-lines-"));
  const path = join(folder, "peer.sock");
  const sockets = new Set<Socket>();
  const lines: Buffer[] = [];
  let connections = 0;
  let wake = (): void => undefined;
  const server = createServer((socket) => {
    connections++;
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket)).on("error", () => undefined);
    let rest: Buffer = Buffer.alloc(0);
    socket.on("data", (bytes: Buffer) => {
      rest = Buffer.concat([rest, bytes]);
      for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10)) {
        const line = rest.subarray(0, end);
        rest = rest.subarray(end + 1);
        lines.push(line);
        script.line?.(line, socket);
      }
      wake();
    });
    script.connected?.(socket);
  });
  const drop = (): void => sockets.forEach((socket) => socket.destroy());
  server.listen(path);
  await once(server, "listening");
  onTestFinished(async () => {
    drop();
    server.close();
    await rm(folder, { recursive: true, force: true });
  });
  return {
    path,
    lines,
    get connections() {
      return connections;
    },
    send: (bytes) => sockets.forEach((socket) => void socket.write(bytes)),
    received: async (count) => {
      while (lines.length < count) await new Promise<void>((resolve) => (wake = resolve));
    },
    drop,
  };
}
