import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { env } from "node:process";
import { AppError, systemCode, type ErrorCode, type ErrorKind } from "../errors.ts";
import { missing } from "../flow/programs.ts";

/** What a call may take, milliseconds. Libvirt itself gives up after 30 s when somebody else has the domain. */
const CALL_MS = 60_000;

/** Bytes of output kept; more is a failure of the call. */
const OUTPUT_MAX = 16 * 1024 * 1024;

/** The end of what virsh says when it fails, characters. */
const WORDS_MAX = 1000;

/** Libvirt's errors by their fixed beginning, which is the same for each of its error numbers (virterror.c). */
const ERRORS: readonly (readonly [beginning: string, kind: ErrorKind, code: ErrorCode])[] = [
  ["failed to get domain ", "notFound", "E_DOMAIN_UNKNOWN"],
  ["Domain not found: ", "notFound", "E_DOMAIN_UNKNOWN"],
  ["authentication failed: ", "credentials", "E_LIBVIRT_REFUSED"],
  ["authentication unavailable: ", "credentials", "E_LIBVIRT_REFUSED"],
  ["access denied", "credentials", "E_LIBVIRT_REFUSED"],
  ["operation forbidden: ", "credentials", "E_LIBVIRT_REFUSED"],
  ["failed to connect to the hypervisor", "source", "E_LIBVIRT_CONNECT"],
  ["Domain checkpoint not found: ", "source", "E_CHECKPOINT_MISSING"],
  ["checkpoint inconsistent: ", "source", "E_CHECKPOINT_BROKEN"],
  ["Domain backup job id not found: ", "source", "E_NO_BACKUP_JOB"],
  ["Guest agent is not responding: ", "source", "E_AGENT_SILENT"],
  ["Timed out during operation: cannot acquire state change lock", "locked", "E_DOMAIN_BUSY"],
  ["Operation not supported: cannot perform disk backup for inactive domain", "source", "E_DOMAIN_OFF"],
  ["Requested operation is not valid: domain is not running", "source", "E_DOMAIN_OFF"],
  ["Requested operation is not valid: no job is active", "source", "E_NO_BACKUP_JOB"],
];

export interface Call {
  /** What stops it. Of a call that changes something: none, for libvirt goes on without virsh. */
  readonly signal?: AbortSignal;
  readonly timeoutMs?: number;
}

/** Runs virsh, libvirt's own client, a process for each call. */
export class Virsh {
  readonly uri: string | undefined;

  /** @param uri of the connection; undefined: what libvirt takes by itself (LIBVIRT_DEFAULT_URI). */
  constructor(uri: string | undefined) {
    this.uri = uri;
  }

  /**
   * @param args in option form where they come from people: a name may begin with "-".
   * @returns what it printed.
   * @throws AppError E_PROGRAM_MISSING (usage: says what to install); by libvirt's words one of `ERRORS`, else E_LIBVIRT
   *   (source); E_LIBVIRT_SILENT (source) after the time: libvirt may do it all the same. The signal's reason.
   */
  async run(command: string, args: readonly string[], call: Call = {}): Promise<string> {
    const { signal, timeoutMs = CALL_MS } = call;
    signal?.throwIfAborted();
    const whole = [...(this.uri === undefined ? [] : ["-c", this.uri]), command, ...args];
    const options = {
      env: { ...env, LC_ALL: "C" },
      maxBuffer: OUTPUT_MAX,
      timeout: timeoutMs,
      ...(signal && { signal }),
    };
    return await new Promise((resolve, reject) => {
      execFile("virsh", whole, options, (error, stdout, stderr) => {
        if (error === null) resolve(stdout);
        else if (signal?.aborted === true) reject(signal.reason);
        else if (systemCode(error) === "ENOENT") reject(missing("virsh", error));
        else if (error.killed === true) reject(silent(command, timeoutMs, error));
        else reject(failed(command, stderr || stdout || error.message));
      });
    });
  }

  /** As `run`, with texts as files that only we can read. @param argsOf their paths, in the same order. */
  async runWith(
    command: string,
    texts: readonly string[],
    argsOf: (paths: readonly string[]) => readonly string[],
    call: Call = {},
  ): Promise<string> {
    const folder = await mkdtemp(join(tmpdir(), "blockhaul-"));
    try {
      const paths = texts.map((_, index) => join(folder, `${index}.xml`));
      for (const [index, path] of paths.entries()) await writeFile(path, texts[index]!, { mode: 0o600 });
      return await this.run(command, argsOf(paths), call);
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  }
}

/**
 * Whether the connection is to a libvirt on this machine: only there can its sockets and files be reached.
 *
 * @param uri as libvirt gives it (`virsh uri`).
 */
export function isLocal(uri: string): boolean {
  const match = /^[a-z]+(?:\+([a-z0-9]+))?:\/\/([^/?#]*)/i.exec(uri);
  return match !== null && match[2] === "" && (match[1] === undefined || match[1] === "unix");
}

/** By libvirt's words. */
export function failed(command: string, said: string): AppError {
  const lines = said
    .trim()
    .split("\n")
    .filter((line) => line.trim() !== "")
    .map((line) => line.replace(/^error: /, ""));
  const words = lines.join(": ").slice(-WORDS_MAX);
  const [, kind, code] = ERRORS.find(([beginning]) => lines.some((line) => line.startsWith(beginning))) ?? [
    "",
    "source" as const,
    "E_LIBVIRT" as const,
  ];
  return new AppError(kind, code, `Libvirt: ${words || `virsh ${command} failed`}`, { command });
}

function silent(command: string, ms: number, cause: unknown): AppError {
  const message = `Libvirt did not answer virsh ${command} within ${ms / 1000} s`;
  return new AppError("source", "E_LIBVIRT_SILENT", message, { command }, cause);
}
