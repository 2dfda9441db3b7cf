import { once } from "node:events";
import { createServer, request, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as delay } from "node:timers/promises";

/** Where in the life of a request a test steps in: before it has reached the server, or once it has been done. */
export interface GatePoint {
  /** Matched against "PUT /bucket/prefix/key?query". */
  readonly request: RegExp;
  readonly when: "before" | "after";
  /** Matching requests that pass first; 0 unless told. */
  readonly skip?: number;
}

/**
 * Stands between an S3 client and its server and hands every request on as it is, so that signatures hold. When the
 * armed point is reached, that request gets no answer until `release`.
 */
export interface S3Gate {
  /** "http://127.0.0.1:PORT" */
  readonly endpoint: string;
  /** "PUT /bucket/key" of every request that came. */
  readonly log: string[];
  /** @returns resolves when the point is reached. */
  arm(point: GatePoint): Promise<void>;
  /** Lets the held request go on. */
  release(): void;
  close(): Promise<void>;
}

/** @param delayMs how much later than it came each request goes on: a server far away. */
export async function openS3Gate(upstream: string, delayMs = 0): Promise<S3Gate> {
  const { hostname, port } = new URL(upstream);
  const log: string[] = [];
  let armed: { point: GatePoint; skip: number; reached: () => void } | undefined;
  let letGo: () => void = () => undefined;

  const hold = async (): Promise<void> => {
    const { promise, resolve } = Promise.withResolvers<undefined>();
    letGo = () => resolve(undefined);
    armed?.reached();
    armed = undefined;
    await promise;
  };
  const strikes = (line: string, when: GatePoint["when"]): boolean => {
    if (armed?.point.when !== when || !armed.point.request.test(line)) return false;
    return armed.skip-- === 0;
  };
  const pass = async (message: IncomingMessage, answer: ServerResponse): Promise<void> => {
    const line = `${message.method} ${message.url}`;
    log.push(line);
    if (delayMs > 0) await delay(delayMs);
    if (strikes(line, "before")) await hold();
    if (answer.destroyed) return; // the client died meanwhile: its request never happened
    const { method, url, headers } = message;
    const onward = request({ hostname, port, method, path: url, headers, agent: false });
    message.pipe(onward);
    answer.on("close", () => onward.destroy());
    const [reply] = (await once(onward, "response")) as [IncomingMessage];
    if (strikes(line, "after")) await hold();
    answer.writeHead(reply.statusCode!, reply.rawHeaders);
    reply.pipe(answer);
  };
  const server = createServer((message, answer) => {
    message.on("error", () => answer.destroy());
    pass(message, answer).catch(() => answer.destroy()); // either side has gone
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    log,
    arm: (point) =>
      new Promise((reached) => {
        armed = { point, skip: point.skip ?? 0, reached };
      }),
    release: () => letGo(),
    close: async () => {
      letGo();
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}
