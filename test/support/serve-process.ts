import { spawn } from "node:child_process";
import { resolve } from "node:path";
import type { QemuArguments } from "../../src/serve/qemu-arguments.ts";
import type { CliResult } from "./cli.ts";

const BIN = resolve(import.meta.dirname, "../../bin/blockhaul.js");

/** What `serve --json` prints when it is ready. */
export interface ServingJson {
  readonly generation: string;
  readonly source: string;
  readonly pid: number;
  readonly exports: readonly {
    readonly disk: string;
    readonly uri: string;
    readonly size: number;
    readonly writable: boolean;
    readonly qemu?: QemuArguments;
  }[];
}

/** A `blockhaul serve` that is ready. */
export interface ServedGeneration extends ServingJson {
  /** Of the first export. */
  readonly uri: string;
  /** Sends the signal and waits for the end. */
  end(signal: NodeJS.Signals): Promise<CliResult>;
  /** What it said on stderr until now. */
  said(): string;
}

/**
 * Starts the built program and waits until it says that it is ready. The caller ends it; it ends with this process at the
 * latest.
 *
 * @param under a program that starts ours, with its own arguments.
 * @throws Error with what it said when it ends before that.
 */
export async function startServeProcess(
  env: Readonly<Record<string, string>>,
  args: readonly string[],
  under: readonly string[] = [],
): Promise<ServedGeneration> {
  const argv = [...under, process.execPath, BIN, "serve", ...args, "--json"];
  const child = spawn(argv[0]!, argv.slice(1), {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...env },
  });
  const endWithUs = (): void => void child.kill("SIGKILL");
  process.once("exit", endWithUs);
  let stdout = "";
  let stderr = "";
  const ready = Promise.withResolvers<ServingJson>();
  const ended = new Promise<CliResult>((done) => {
    child.once("error", (error) => done({ code: null, signal: null, stdout, stderr: error.message }));
    child.once("close", (code, signal) => done({ code, signal, stdout, stderr }));
  }).finally(() => process.removeListener("exit", endWithUs));
  void ended.then((result) =>
    ready.reject(new Error(`serve ended with ${result.code ?? result.signal}: ${result.stderr}`)),
  );
  child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
    if (stdout.endsWith("\n}\n")) ready.resolve(JSON.parse(stdout) as ServingJson);
  });
  const serving = await ready.promise;
  return {
    ...serving,
    uri: serving.exports[0]!.uri,
    end: async (signal) => {
      child.kill(signal);
      return await ended;
    },
    said: () => stderr,
  };
}
