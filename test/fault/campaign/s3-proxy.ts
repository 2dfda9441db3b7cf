import { once } from "node:events";
import {
  Agent,
  createServer,
  request,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { S3Rules, type S3Rule } from "./s3-faults.ts";
import type { Uploads } from "./uploads.ts";

/** What the server is told it was, when it was not. */
const ANSWERS = [
  [500, "InternalError"],
  [503, "SlowDown"],
  [400, "RequestTimeout"],
] as const;
/** How far off the Date of answers may be, seconds: within what R22 takes, and within what S3 takes of signatures. */
const CLOCK_OFF_MAX_S = 360;

interface Struck {
  readonly message: IncomingMessage;
  readonly answer: ServerResponse;
  readonly body: Buffer;
  readonly rule: S3Rule;
}

/**
 * Stands between one run of the program and a real S3 server, and does to its requests what the rules say. The rest
 * it hands on as it is, so that signatures hold.
 */
export class S3Proxy {
  /** Kinds of the faults that struck, in order. */
  readonly hits: string[] = [];
  /** "PUT /bucket/key" of every request that came, with the fault it had. */
  readonly log: string[] = [];
  /** Called when the program is to be killed; resolves when it is dead. */
  onKill: () => Promise<void> = () => Promise.resolve();
  readonly #upstream: URL;
  readonly #rules: S3Rules;
  readonly #uploads: Uploads;
  readonly #agent = new Agent({ keepAlive: true });
  readonly #server: Server;
  readonly #closing = new AbortController();
  #clockOffS = 0;

  private constructor(upstream: string, rules: readonly S3Rule[], uploads: Uploads) {
    this.#upstream = new URL(upstream);
    this.#rules = new S3Rules(rules);
    this.#uploads = uploads;
    this.#server = createServer((message, answer) => {
      message.on("error", () => answer.destroy());
      this.#take(message, answer).catch(() => answer.destroy()); // either side has gone
    });
  }

  static async open(upstream: string, rules: readonly S3Rule[], uploads: Uploads): Promise<S3Proxy> {
    const proxy = new S3Proxy(upstream, rules, uploads);
    proxy.#server.listen(0, "127.0.0.1");
    await once(proxy.#server, "listening");
    return proxy;
  }

  /** "http://127.0.0.1:PORT" */
  get endpoint(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async close(): Promise<void> {
    this.#closing.abort();
    this.#agent.destroy();
    this.#server.closeAllConnections();
    this.#server.close();
    await once(this.#server, "close");
  }

  async #take(message: IncomingMessage, answer: ServerResponse): Promise<void> {
    const line = `${message.method} ${message.url}`;
    const rule = this.#rules.next(line);
    const body = Buffer.concat((await message.toArray()) as Buffer[]);
    this.log.push(rule === undefined ? line : `${line} [${rule.kind}]`);
    const url = new URL(message.url!, this.#upstream);
    const key = decodeURIComponent(url.pathname.split("/").slice(2).join("/"));
    if (message.method === "POST" && url.searchParams.has("uploads")) this.#uploads.begun(key);
    if (rule !== undefined) {
      await this.#strike({ message, answer, body, rule });
    } else if (message.method === "GET" && url.searchParams.has("uploads")) {
      const text = await this.#uploads.answer(url.searchParams.get("prefix") ?? "");
      this.#say(answer, 200, text);
    } else {
      await this.#passOn(message, answer, body);
    }
  }

  async #strike(struck: Struck): Promise<void> {
    const { message, answer, body, rule } = struck;
    this.hits.push(rule.kind);
    switch (rule.kind) {
      case "delay":
        await this.#pause(rule.value % 800);
        {
          await this.#passOn(message, answer, body);
          return;
        }
      case "stall":
        await this.#pause(2000 + (rule.value % 4000));
        {
          reset(answer);
          return;
        }
      case "reset before": {
        reset(answer);
        return;
      }
      case "reset after":
        await drained(await this.#send(message, body));
        {
          reset(answer);
          return;
        }
      case "cut request":
        await this.#sendHalf(message, body);
        {
          reset(answer);
          return;
        }
      case "cut answer": {
        await this.#cutAnswer(struck);
        return;
      }
      case "refuse before": {
        this.#refuse(answer, rule);
        return;
      }
      case "refuse after":
        await drained(await this.#send(message, body));
        {
          this.#refuse(answer, rule);
          return;
        }
      case "twice":
        await drained(await this.#send(message, body));
        {
          await this.#passOn(message, answer, body);
          return;
        }
      case "damage request": {
        await this.#passOn(message, answer, damaged(body, rule.value));
        return;
      }
      case "damage answer": {
        const reply = await this.#send(message, body);
        const bytes = Buffer.concat((await reply.toArray()) as Buffer[]);
        const isObject = reply.statusCode === 200 || reply.statusCode === 206;
        this.#head(answer, reply);
        answer.end(isObject ? damaged(bytes, rule.value) : bytes);
        return;
      }
      case "clock":
        this.#clockOffS = (rule.value % (2 * CLOCK_OFF_MAX_S)) - CLOCK_OFF_MAX_S;
        {
          await this.#passOn(message, answer, body);
          return;
        }
      case "kill before":
        await this.onKill();
        {
          reset(answer);
          return;
        }
      case "kill after":
        await drained(await this.#send(message, body));
        await this.onKill();
        {
          reset(answer);
          return;
        }
    }
  }

  async #passOn(message: IncomingMessage, answer: ServerResponse, body: Buffer): Promise<void> {
    const reply = await this.#send(message, body);
    this.#head(answer, reply);
    reply.pipe(answer);
    await once(answer, "close");
    reply.destroy();
  }

  async #send(message: IncomingMessage, body: Buffer): Promise<IncomingMessage> {
    const onward = this.#request(message);
    onward.end(body);
    const [reply] = (await once(onward, "response")) as [IncomingMessage];
    return reply;
  }

  async #sendHalf(message: IncomingMessage, body: Buffer): Promise<void> {
    const onward = this.#request(message);
    onward.on("error", () => undefined); // we end it ourselves
    await new Promise<void>((sent) => {
      onward.write(body.subarray(0, body.length >> 1), () => sent());
    });
    onward.destroy();
  }

  async #cutAnswer({ message, answer, body }: Struck): Promise<void> {
    const reply = await this.#send(message, body);
    const bytes = Buffer.concat((await reply.toArray()) as Buffer[]);
    if (bytes.length < 2) {
      reset(answer);
      return;
    }
    this.#head(answer, reply);
    await new Promise<void>((sent) => {
      answer.write(bytes.subarray(0, bytes.length >> 1), () => sent());
    });
    answer.destroy();
  }

  #request(message: IncomingMessage): ReturnType<typeof request> {
    const { hostname, port } = this.#upstream;
    const { method, url, headers } = message;
    const { signal } = this.#closing;
    return request({ hostname, port, method, path: url, headers, agent: this.#agent, signal });
  }

  #refuse(answer: ServerResponse, rule: S3Rule): void {
    const [status, code] = ANSWERS[rule.value % ANSWERS.length]!;
    this.#say(
      answer,
      status,
      `<?xml version="1.0"?><Error><Code>${code}</Code><Message>so be it</Message></Error>`,
    );
  }

  #say(answer: ServerResponse, status: number, text: string): void {
    answer.writeHead(status, { "content-type": "application/xml", date: this.#date(new Date()) });
    answer.end(text);
  }

  #head(answer: ServerResponse, reply: IncomingMessage): void {
    const headers = { ...reply.headers };
    if (headers.date !== undefined) headers.date = this.#date(new Date(headers.date));
    answer.writeHead(reply.statusCode!, headers);
  }

  #date(truth: Date): string {
    return new Date(truth.getTime() + this.#clockOffS * 1000).toUTCString();
  }

  async #pause(ms: number): Promise<void> {
    await delay(ms, undefined, { signal: this.#closing.signal });
  }
}

function reset(answer: ServerResponse): void {
  answer.socket?.resetAndDestroy();
}

async function drained(reply: IncomingMessage): Promise<void> {
  await reply.toArray();
}

/** One bit is another; nothing of an empty body. */
function damaged(bytes: Buffer, value: number): Buffer {
  const copy = Buffer.from(bytes);
  const bit = value % (8 * Math.max(1, copy.length));
  if (copy.length > 0) copy[bit >> 3]! ^= 1 << (bit & 7);
  return copy;
}
