import { spawn, type ChildProcess } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { closeSync, openSync, readFileSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { join, resolve } from "node:path";
import { text } from "node:stream/consumers";
import { onTestFinished } from "vitest";
import { builtFunctions } from "./bundles.ts";
import { temporaryFolder } from "./folder.ts";

/** AWS's own runtime client, as it runs in Lambda; test/support/install.sh builds it. */
const RIC = resolve(import.meta.dirname, "../../.cache/ric/index.mjs");

/** Of a function, MiB. */
const MEMORY = 512;

interface Invocation {
  readonly id: string;
  readonly event: unknown;
  readonly timeoutMs: number;
  readonly killMs: number;
  readonly resolve: (result: unknown) => void;
  readonly reject: (error: Error) => void;
  timer?: NodeJS.Timeout;
}

export interface FunctionOptions {
  /** "pull.handler", of the bundles. */
  readonly handler: string;
  /** Goes before what Lambda sets, such as NODE_OPTIONS with the size of its heap. */
  readonly environment: Readonly<Record<string, string>>;
}

/**
 * Lambda's service to one function: the Runtime API, an execution environment that is started when it is needed, and ended
 * when an invocation takes too long. Ends with the test.
 */
export class LambdaService {
  readonly #log: string;
  readonly #options: FunctionOptions;
  readonly #server: Server;
  #child: ChildProcess | undefined;
  #waiting: ServerResponse | undefined;
  #queued: Invocation | undefined;
  #running: Invocation | undefined;

  private constructor(options: FunctionOptions, log: string) {
    this.#log = log;
    this.#options = options;
    this.#server = createServer((request, response) => void this.#answer(request, response));
  }

  static async start(options: FunctionOptions): Promise<LambdaService> {
    const service = new LambdaService(options, join(await temporaryFolder(), "log"));
    service.#server.listen(0, "127.0.0.1");
    await once(service.#server, "listening");
    onTestFinished(() => service.#stop());
    return service;
  }

  /** What the function printed until now: it writes into a file, so that nothing of an invocation comes after its answer. */
  get output(): string {
    return readFileSync(this.#log, "utf8");
  }

  /**
   * One at a time.
   * @param timeoutMs what the function is told that it may take. @param killMs what it may take.
   * @throws Error of the function, of its end, or "timed out".
   */
  async invoke(event: unknown, timeoutMs = 60_000, killMs = timeoutMs): Promise<unknown> {
    return await new Promise((done, reject) => {
      this.#queued = { id: randomUUID(), event, timeoutMs, killMs, resolve: done, reject };
      if (this.#child === undefined) this.#start();
      this.#hand();
    });
  }

  /** Ends the environment as Lambda does when its memory is used up. */
  exhaust(): void {
    this.#child?.kill("SIGKILL");
  }

  /** Lets it stand still, as one does that cannot keep up; its time runs on. */
  stall(): void {
    this.#child?.kill("SIGSTOP");
  }

  #start(): void {
    const { handler, environment } = this.#options;
    const folder = builtFunctions();
    const log = openSync(this.#log, "a");
    const { port } = this.#server.address() as AddressInfo;
    const child = spawn(process.execPath, [RIC, handler], {
      cwd: folder,
      stdio: ["ignore", log, log],
      env: {
        PATH: process.env["PATH"],
        TZ: ":UTC",
        LAMBDA_TASK_ROOT: folder,
        _HANDLER: handler,
        AWS_LAMBDA_RUNTIME_API: `127.0.0.1:${port}`,
        AWS_LAMBDA_FUNCTION_NAME: handler.split(".")[0],
        AWS_LAMBDA_FUNCTION_VERSION: "$LATEST",
        AWS_LAMBDA_FUNCTION_MEMORY_SIZE: String(MEMORY),
        AWS_LAMBDA_LOG_GROUP_NAME: "/aws/lambda/test",
        AWS_LAMBDA_LOG_STREAM_NAME: "test",
        NODE_OPTIONS: `--max-old-space-size=${MEMORY}`,
        ...environment,
      },
    });
    closeSync(log);
    child.on("exit", (code, signal) => {
      if (this.#child !== child) return;
      this.#child = undefined;
      this.#waiting = undefined;
      this.#end()?.reject(new Error(`Runtime exited with ${signal ?? code}: ${this.output.slice(-2000)}`));
    });
    this.#child = child;
  }

  #hand(): void {
    const response = this.#waiting;
    const invocation = this.#queued;
    if (response === undefined || invocation === undefined) return;
    this.#waiting = undefined;
    this.#queued = undefined;
    this.#running = invocation;
    const { timeoutMs, killMs } = invocation;
    invocation.timer = setTimeout(() => {
      this.#kill();
      this.#end()?.reject(new Error("timed out"));
    }, killMs);
    response.writeHead(200, {
      "Content-Type": "application/json",
      "Lambda-Runtime-Aws-Request-Id": invocation.id,
      "Lambda-Runtime-Deadline-Ms": String(Date.now() + timeoutMs),
      "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:000000000000:function:test",
    });
    response.end(JSON.stringify(invocation.event));
  }

  /** The invocation that went on, which is over. */
  #end(): Invocation | undefined {
    const invocation = this.#running ?? this.#queued;
    this.#running = undefined;
    this.#queued = undefined;
    clearTimeout(invocation?.timer);
    return invocation;
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const [, what, how] =
      /^\/2018-06-01\/runtime\/(?:invocation\/)?([^/]+)(?:\/(response|error))?$/.exec(request.url ?? "") ??
      [];
    if (what === "next") {
      this.#waiting = response;
      this.#hand();
      return;
    }
    const body = await text(request);
    response.writeHead(202).end('{"status":"OK"}');
    const invocation = this.#end();
    if (how === "response") invocation?.resolve(body === "" ? undefined : JSON.parse(body));
    else invocation?.reject(new Error(body));
  }

  #kill(): void {
    const child = this.#child;
    this.#child = undefined;
    this.#waiting = undefined;
    child?.kill("SIGKILL");
  }

  #stop(): void {
    this.#kill();
    this.#server.closeAllConnections();
    this.#server.close();
  }
}
