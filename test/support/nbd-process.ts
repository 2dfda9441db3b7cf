import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

/** A running NBD server, for tests. */
export interface NbdProcess {
  /** Path of its Unix socket; unused when it listens on TCP. */
  readonly socket: string;
  /** Loopback TCP port, when it was asked for one. */
  readonly port: number | undefined;
  /** Without TLS. */
  readonly uri: string;
  readonly pid: number;
  /** Ends it and removes its folder. Safe to call twice. */
  stop(): Promise<void>;
  /** Ends it as a crash would, and leaves the socket's folder, so that another can start on the same socket. */
  kill(): Promise<void>;
}

export interface NbdProcessOptions {
  readonly exportName?: string;
  /** Listens on a free loopback port instead of a Unix socket. */
  readonly tcp?: boolean;
  /** Takes over this server's place: its socket or port. */
  readonly insteadOf?: NbdProcess;
}

/** What a launcher adds to the command line for its kind of server. */
export interface NbdPlace {
  readonly socket: string;
  readonly port: number | undefined;
  /** Appears once the server accepts clients. */
  readonly pidFile: string;
}

/**
 * Starts a server in a folder of its own and waits until it accepts clients.
 *
 * @throws Error with what it said when it exits before.
 */
export async function startNbdProcess(
  program: string,
  argsAt: (place: NbdPlace) => readonly string[],
  options: NbdProcessOptions,
): Promise<NbdProcess> {
  const folder = await mkdtemp(join(tmpdir(), "nbd-"));
  const socket = options.insteadOf?.socket ?? join(folder, "nbd.sock");
  const port = options.insteadOf === undefined && options.tcp ? await freePort() : options.insteadOf?.port;
  const pidFile = join(folder, "pid");
  await rm(socket, { force: true });
  const child = spawn(program, argsAt({ socket, port, pidFile }), { stdio: ["ignore", "ignore", "pipe"] });
  const exited = once(child, "exit");
  let said = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => (said = (said + text).slice(-4000)));
  const endWithUs = (): void => void child.kill("SIGKILL");
  process.once("exit", endWithUs);
  const kill = async (): Promise<void> => {
    process.removeListener("exit", endWithUs);
    child.kill("SIGKILL");
    await exited;
  };
  const stop = async (): Promise<void> => {
    await kill();
    await rm(folder, { recursive: true, force: true });
  };
  while ((await readFile(pidFile, "utf8").catch(() => "")) === "") {
    if (child.exitCode !== null || child.signalCode !== null) {
      await stop();
      throw new Error(`${program} ended with ${child.exitCode ?? child.signalCode ?? "?"}: ${said}`);
    }
    await delay(5);
  }
  const name = encodeURIComponent(options.exportName ?? "");
  const uri =
    port === undefined
      ? `nbd+unix:///${name}?socket=${encodeURIComponent(socket)}`
      : `nbd://127.0.0.1:${port}/${name}`;
  return { socket, port, uri, pid: child.pid!, stop, kill };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}
