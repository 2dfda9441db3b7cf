import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { onTestFinished } from "vitest";
import type { ServedDisk } from "../../src/nbd/server/served-disk.ts";
import { NbdServer, type NbdServerOptions } from "../../src/nbd/server/server.ts";

/** A folder of the test's own. */
export async function testFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "nbd-server-"));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

export interface TestServer {
  readonly server: NbdServer;
  readonly path: string;
  /** What the server reported. */
  readonly errors: unknown[];
}

/** Our server on a private Unix socket, in this process; closed when the test ends. */
export async function serve(
  exports: Readonly<Record<string, ServedDisk>>,
  options: NbdServerOptions = {},
): Promise<TestServer> {
  const path = join(await testFolder(), "nbd.sock");
  const errors: unknown[] = [];
  const onError = (error: unknown): void => void errors.push(error);
  const server = await NbdServer.listen(new Map(Object.entries(exports)), { path }, { onError, ...options });
  onTestFinished(() => server.close());
  return { server, path, errors };
}

export interface Finished {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a program while this process goes on serving. Ended after a minute. */
export async function run(program: string, ...args: readonly string[]): Promise<Finished> {
  // nbdsh runs the first python3 of the path; the one with libnbd's module is the distribution's.
  const env = { ...process.env, PATH: `/usr/bin:${process.env["PATH"] ?? ""}` };
  try {
    const done = await promisify(execFile)(program, args, {
      timeout: 60_000,
      maxBuffer: 64 * 1024 * 1024,
      env,
    });
    return { code: 0, ...done };
  } catch (error) {
    const { code, stdout, stderr } = error as { code: unknown; stdout: string; stderr: string };
    if (typeof code !== "number") throw error;
    return { code, stdout, stderr };
  }
}

/** Runs a program that must succeed. */
export async function output(program: string, ...args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await run(program, ...args);
  if (code !== 0) throw new Error(`${program} ${args.join(" ")} ended with ${code}: ${stderr}`);
  return stdout;
}
