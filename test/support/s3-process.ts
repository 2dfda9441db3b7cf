import { randomInt } from "node:crypto";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { accessSync, constants, createWriteStream } from "node:fs";
import { readFile } from "node:fs/promises";
import http from "node:http";
import https from "node:https";
import { connect, createServer } from "node:net";
import { homedir } from "node:os";
import { delimiter, join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

/** What every launcher of an S3 server gives. */
export interface S3Server {
  /** "http://127.0.0.1:PORT" */
  readonly endpoint: string;
  readonly accessKey: string;
  readonly secretKey: string;
  readonly region: string;
  /** For child processes: credentials, region and endpoint as the AWS SDK reads them, and no profile files. */
  readonly env: Readonly<Record<string, string>>;
  /** Makes a bucket. @returns the name to use, which is not `name` on a server shared with others. */
  createBucket(name: string): Promise<string>;
  /** "s3://bucket/prefix?endpoint=…&region=…" */
  location(bucket: string, prefix?: string): string;
  stop(): Promise<void>;
}

/** The pieces of an `S3Server` that follow from where it is and who may use it. */
export function describeServer(
  endpoint: string,
  accessKey: string,
  secretKey: string,
): Pick<S3Server, "endpoint" | "accessKey" | "secretKey" | "region" | "env" | "location"> {
  const region = "us-east-1";
  return {
    endpoint,
    accessKey,
    secretKey,
    region,
    env: {
      AWS_ACCESS_KEY_ID: accessKey,
      AWS_SECRET_ACCESS_KEY: secretKey,
      AWS_REGION: region,
      AWS_ENDPOINT_URL: endpoint,
      AWS_CONFIG_FILE: "/dev/null",
      AWS_SHARED_CREDENTIALS_FILE: "/dev/null",
      AWS_EC2_METADATA_DISABLED: "true",
    },
    location: (bucket, prefix = "") =>
      `s3://${bucket}/${prefix}?endpoint=${encodeURIComponent(endpoint)}&region=${region}`,
  };
}

/** Where programs of the Go tool chain may be besides PATH; `test/support/install.sh` puts them in the first. */
function goFolders(): string[] {
  const gopath = process.env["GOPATH"];
  return [
    resolve(import.meta.dirname, "../../.cache/bin"),
    ...(gopath === undefined ? [] : gopath.split(delimiter).map((folder) => join(folder, "bin"))),
    join(homedir(), "go/bin"),
  ];
}

/** The full path of a program in PATH, the checkout's cache or a Go folder. */
export function findProgram(name: string): string | undefined {
  const folders = [...(process.env["PATH"] ?? "").split(delimiter), ...goFolders()];
  return folders
    .map((folder) => join(folder, name))
    .find((path) => {
      try {
        accessSync(path, constants.X_OK);
        return true;
      } catch {
        return false;
      }
    });
}

/** As `findProgram`, for tests that cannot do without. */
export function needProgram(name: string): string {
  const found = findProgram(name);
  if (found === undefined) throw new Error(`${name} is not installed; run test/support/install.sh`);
  return found;
}

/**
 * A loopback port that was free a moment ago, below those that the system gives to outgoing connections: one of
 * these may be taken again before the server comes to it.
 */
export async function freePort(): Promise<number> {
  for (let attempt = 0; attempt < 100; attempt++) {
    const port = randomInt(15_000, 30_000);
    const server = createServer().listen(port, "127.0.0.1");
    try {
      await once(server, "listening");
      server.close();
      await once(server, "close");
      return port;
    } catch {
      continue; // in use
    }
  }
  throw new Error("No free port");
}

export interface ServerProcess {
  readonly pid: number;
  stop(): Promise<void>;
}

/**
 * Starts a server and waits until `ready` says yes. It is ended with the test process at the latest.
 *
 * @param log file that takes its output; its end is part of the error when the server dies early.
 */
export async function startProcess(
  program: string,
  args: readonly string[],
  options: {
    readonly env?: NodeJS.ProcessEnv;
    readonly log: string;
    readonly ready: () => Promise<boolean>;
  },
): Promise<ServerProcess> {
  const out = createWriteStream(options.log);
  const child = spawn(program, args, {
    env: options.env ?? process.env,
    stdio: ["ignore", "pipe", "pipe"],
  });
  child.stdout.pipe(out, { end: false });
  child.stderr.pipe(out, { end: false });
  const exited = once(child, "exit");
  const kill = (): void => void child.kill("SIGKILL");
  process.once("exit", kill);
  const deadline = Date.now() + 60_000;
  while (!(await options.ready())) {
    if (child.exitCode !== null || child.signalCode !== null || Date.now() > deadline) {
      child.kill("SIGKILL");
      throw new Error(`${program} did not start:\n${(await readFile(options.log, "utf8")).slice(-2000)}`);
    }
    await delay(20);
  }
  return {
    pid: child.pid!,
    stop: async () => {
      process.removeListener("exit", kill);
      child.kill("SIGKILL");
      await exited;
      out.end();
    },
  };
}

/** True when a GET of the URL is answered at all (2xx when `ok` is asked for); any certificate will do. */
export async function answers(url: string, ok = false): Promise<boolean> {
  const get = url.startsWith("https:") ? https.get : http.get;
  const request = get(url, { rejectUnauthorized: false, agent: false });
  try {
    const [response] = (await once(request, "response")) as [http.IncomingMessage];
    response.resume();
    return ok ? response.statusCode === 200 : true;
  } catch {
    return false;
  }
}

/** True when somebody listens on the loopback port. */
export async function listens(port: number): Promise<boolean> {
  const socket = connect(port, "127.0.0.1");
  try {
    await once(socket, "connect");
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

/** Runs a program to its end. @throws Error with its output when it fails. */
export function runProgram(program: string, args: readonly string[], env?: NodeJS.ProcessEnv): string {
  const done = spawnSync(program, args, { env: env ?? process.env, encoding: "utf8" });
  if (done.status !== 0) throw new Error(`${program} ${args.join(" ")}: ${done.stderr}${done.stdout}`);
  return done.stdout;
}
