import { spawn, type ChildProcess } from "node:child_process";
import { resolve } from "node:path";
import { expectNoSecrets, secretsOf } from "./secrets.ts";

const BIN = resolve(import.meta.dirname, "../../bin/blockhaul.js");

export interface CliResult {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface CliOptions {
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** In place of ours: a script with the same outputs. */
  readonly program?: string;
  /** A program that starts ours, with its own arguments: `["prlimit", "--fsize=1000"]`. */
  readonly under?: readonly string[];
  /** Given the process as soon as it runs: to send it signals. */
  readonly started?: (child: ChildProcess) => void;
}

/** Runs the built program as a user does. @throws Error when it prints a secret that it was given. */
export async function runCli(args: readonly string[], options: CliOptions = {}): Promise<CliResult> {
  const argv = [...(options.under ?? []), process.execPath, options.program ?? BIN, ...args];
  const env = { ...process.env, ...options.env };
  const secrets = secretsOf(env, args); // now: the files may be gone when it ends
  const child = spawn(argv[0]!, argv.slice(1), {
    stdio: ["ignore", "pipe", "pipe"],
    env,
    ...(options.cwd !== undefined && { cwd: options.cwd }),
  });
  options.started?.(child);
  let stdout = "";
  let stderr = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
  child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
  const result = await new Promise<CliResult>((done, fail) => {
    child.on("error", fail);
    child.on("close", (code, signal) => done({ code, signal, stdout, stderr }));
  });
  expectNoSecrets(secrets, stdout + stderr, `The output of blockhaul ${args[0] ?? ""}`);
  return result;
}

/** Runs it with `--json`, expects success, and returns the document. */
export async function runJson<T>(args: readonly string[], options: CliOptions = {}): Promise<T> {
  const result = await runCli([...args, "--json"], options);
  if (result.code !== 0)
    throw new Error(`blockhaul ${args.join(" ")} exited with ${result.code}: ${result.stderr}`);
  return JSON.parse(result.stdout) as T;
}
