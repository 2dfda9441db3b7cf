import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { NbdFrames, type NbdFrame } from "./nbd-frames.ts";

/**
 * What may become of a message of an NBD server.
 *
 * - `cut`      half of it arrives, then the connection is gone
 * - `away`     the same, and no new connection is taken for up to 3 s
 * - `stall`    nothing more arrives for 2 to 6 s, then the connection is gone
 * - `delay`    up to 0.8 s
 * - `reorder`  replies to later requests overtake it
 * - `damage`   one bit of its header; the connection is gone 1.5 s later, for a damaged length may wait for bytes
 *              that nobody sends. Content stays as it is: NBD has no checksums, no client can notice.
 */
export const NBD_FAULTS = ["cut", "away", "stall", "delay", "reorder", "damage"] as const;

export interface NbdRule {
  readonly kind: (typeof NBD_FAULTS)[number];
  /** Which message of the server, over all connections of the run; 0 is the first. */
  readonly nth: number;
  /** 0 to 999,999: how long, which bit. */
  readonly value: number;
}

/** A message that was held back is overtaken by so many others, or waits so long. */
const OVERTAKEN_BY = 3;
const OVERTAKEN_MS = 150;

/** Stands between one run of the program and a real NBD server on a Unix socket. */
export class NbdProxy {
  readonly hits: string[] = [];
  readonly #upstream: string;
  readonly #rules: readonly NbdRule[];
  readonly #folder: string;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #closing = new AbortController();
  #messages = 0;
  #awayUntil = 0;

  private constructor(upstream: string, rules: readonly NbdRule[], folder: string) {
    this.#upstream = upstream;
    this.#rules = rules;
    this.#folder = folder;
    this.#server = createServer((client) => this.#connected(client));
  }

  /** @param upstream path of the server's socket. */
  static async open(upstream: string, rules: readonly NbdRule[]): Promise<NbdProxy> {
    const proxy = new NbdProxy(upstream, rules, await mkdtemp(join(tmpdir(), "nbd-proxy-")));
    proxy.#server.listen(proxy.#path);
    await once(proxy.#server, "listening");
    return proxy;
  }

  get #path(): string {
    return join(this.#folder, "nbd.sock");
  }

  uri(exportName: string): string {
    return `nbd+unix:///${exportName}?socket=${encodeURIComponent(this.#path)}`;
  }

  async close(): Promise<void> {
    this.#closing.abort();
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
    await once(this.#server, "close");
    await rm(this.#folder, { recursive: true, force: true });
  }

  #connected(client: Socket): void {
    if (performance.now() < this.#awayUntil) {
      client.destroy();
      return;
    }
    const server = connect(this.#upstream);
    for (const socket of [client, server]) {
      this.#sockets.add(socket);
      socket.on("error", () => undefined); // it closes then
      socket.on("close", () => {
        this.#sockets.delete(socket);
        client.destroy();
        server.destroy();
      });
    }
    client.pipe(server);
    this.#carry(server, client).catch(() => client.destroy());
  }

  /** What the server says, message by message. */
  async #carry(server: Socket, client: Socket): Promise<void> {
    const frames = new NbdFrames();
    const order = new Reorder((frame) => write(client, frame.bytes));
    for await (const bytes of server as AsyncIterable<Buffer>) {
      for (const frame of frames.push(bytes)) {
        const number = this.#messages++;
        const rule = this.#rules.find(({ nth }) => nth === number);
        if (rule === undefined) await order.pass(frame);
        else await this.#strike(rule, frame, client, order);
      }
    }
    order.flush();
    client.end();
  }

  async #strike(rule: NbdRule, frame: NbdFrame, client: Socket, order: Reorder): Promise<void> {
    const { signal } = this.#closing;
    const { value } = rule;
    if (rule.kind === "reorder" && frame.cookie === undefined) {
      await order.pass(frame);
      return;
    } // of the handshake
    this.hits.push(rule.kind);
    switch (rule.kind) {
      case "delay":
        await delay(value % 800, undefined, { signal });
        {
          await order.pass(frame);
          return;
        }
      case "stall":
        await delay(2000 + (value % 4000), undefined, { signal });
        client.destroy();
        return;
      case "away":
        this.#awayUntil = performance.now() + (value % 3000);
        {
          await cut(client, frame);
          return;
        }
      case "cut": {
        await cut(client, frame);
        return;
      }
      case "reorder":
        order.hold(frame);
        return;
      case "damage": {
        const bytes = Buffer.from(frame.bytes);
        const bit = value % (8 * frame.header);
        bytes[bit >> 3]! ^= 1 << (bit & 7);
        await write(client, bytes);
        void delay(1500, undefined, { signal }).then(
          () => client.destroy(),
          () => undefined,
        );
        return;
      }
    }
  }
}

/** Holds a message and all else with its cookie back, for a while. */
class Reorder {
  readonly #write: (frame: NbdFrame) => Promise<void>;
  #held: NbdFrame[] = [];
  #passed = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(write: (frame: NbdFrame) => Promise<void>) {
    this.#write = write;
  }

  hold(frame: NbdFrame): void {
    this.flush();
    this.#held = [frame];
    this.#passed = 0;
    this.#timer = setTimeout(() => this.flush(), OVERTAKEN_MS);
  }

  async pass(frame: NbdFrame): Promise<void> {
    if (this.#held[0] !== undefined && this.#held[0].cookie === frame.cookie) {
      this.#held.push(frame);
      return;
    }
    await this.#write(frame);
    if (this.#held.length > 0 && ++this.#passed === OVERTAKEN_BY) this.flush();
  }

  flush(): void {
    clearTimeout(this.#timer);
    for (const frame of this.#held.splice(0)) void this.#write(frame);
  }
}

async function cut(client: Socket, frame: NbdFrame): Promise<void> {
  await write(client, frame.bytes.subarray(0, frame.bytes.length >> 1));
  client.destroy();
}

/** Resolves when it is on its way, or the connection is gone. */
async function write(socket: Socket, bytes: Uint8Array): Promise<void> {
  if (socket.destroyed) return;
  await new Promise<void>((sent) => socket.write(bytes, () => sent()));
}
