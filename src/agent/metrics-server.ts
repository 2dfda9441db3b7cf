import { once } from "node:events";
import { createServer, type Server } from "node:http";
import { isIP } from "node:net";
import { AppError, messageOf } from "../errors.ts";

/** Where metrics are served. */
export interface MetricsAddress {
  readonly host: string;
  readonly port: number;
}

/**
 * "127.0.0.1:9477" or "[::1]:9477". Numbers about backups are nobody else's: another address than loopback is refused.
 * @throws AppError E_METRICS_ADDRESS (usage).
 */
export function parseMetricsAddress(text: string): MetricsAddress {
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([0-9.]+|localhost)):(\d{1,5})$/.exec(text);
  const host = match?.[1] ?? match?.[2] ?? "";
  const port = Number(match?.[3] ?? -1);
  const loopback = host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."));
  if (loopback && port >= 0 && port <= 65_535) return { host, port };
  const message = `Not an address for metrics: "${text}"; write 127.0.0.1:9477 or [::1]:9477, which only this machine reaches`;
  throw new AppError("usage", "E_METRICS_ADDRESS", message);
}

/** Serves text at `/metrics` to this machine. */
export class MetricsServer {
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
  }

  /** @throws AppError E_LISTEN (usage): the address is taken. */
  static async listen({ host, port }: MetricsAddress, text: () => string): Promise<MetricsServer> {
    const server = createServer({ requestTimeout: 10_000, headersTimeout: 10_000 }, (request, response) => {
      const found = request.method === "GET" && request.url?.split("?")[0] === "/metrics";
      response.writeHead(found ? 200 : 404, { "content-type": "text/plain; version=0.0.4; charset=utf-8" });
      response.end(found ? text() : "The metrics are at /metrics\n");
    });
    server.maxConnections = 16;
    try {
      server.listen(port, host);
      await once(server, "listening");
    } catch (error) {
      const message = `Metrics cannot be served at ${host}:${port}: ${messageOf(error)}`;
      throw new AppError("usage", "E_LISTEN", message, { host, port }, error);
    }
    return new MetricsServer(server);
  }

  get port(): number {
    const address = this.#server.address();
    return typeof address === "object" && address !== null ? address.port : 0;
  }

  close(): void {
    this.#server.closeAllConnections();
    this.#server.close();
  }
}
