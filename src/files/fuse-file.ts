import { once } from "node:events";
import { spawn } from "node:child_process";
import { mkdir, readFile, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { AppError, systemCode } from "../errors.ts";
import { pause } from "../flow/retry.ts";

/** A file that stands for something until it is closed. */
export interface StandIn {
  readonly path: string;
  /** When it ended by itself, by `umount` for one. Never rejects. */
  readonly ended: Promise<void>;
  /** Safe to call twice. */
  close(): Promise<void>;
}

export interface FuseFileWish {
  /** Of the export. */
  readonly uri: string;
  /** The file that is to be; its folder is made when it is not there, and must be empty. */
  readonly path: string;
  readonly writable: boolean;
}

const READY_MS = 20_000;
const POLL_MS = 10;
/** What one whose file is still open gets to end. */
const END_MS = 5000;

/**
 * An NBD export as a file, by nbdfuse.
 *
 * @throws AppError E_NO_FUSE (usage): nbdfuse is not there, or may not mount; the signal's reason.
 */
export async function mountFuseFile(
  { uri, path, writable }: FuseFileWish,
  signal: AbortSignal,
): Promise<StandIn> {
  await mkdir(dirname(path), { recursive: true });
  const ready = join(dirname(dirname(path)), `.${basename(dirname(path))}.pid`);
  const args = [...(writable ? [] : ["-r"]), "-P", ready, path, uri];
  const child = spawn("nbdfuse", args, { stdio: ["ignore", "ignore", "pipe"] });
  let words = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => (words = (words + text).slice(-4096)));
  const state: { gone: boolean; failure?: unknown } = { gone: false };
  const ended = once(child, "close")
    .catch((error: unknown) => void (state.failure = error))
    .then(() => void (state.gone = true));
  const close = async (): Promise<void> => {
    child.kill("SIGTERM"); // it unmounts then
    const linger = new AbortController();
    await Promise.race([ended, pause(END_MS, linger.signal).catch(() => undefined)]);
    linger.abort();
    child.kill("SIGKILL");
    await ended;
    await rm(ready, { force: true });
  };
  try {
    const late = performance.now() + READY_MS;
    while ((await readFile(ready, "utf8").catch(() => "")) === "") {
      if (state.gone || performance.now() > late) throw notMounted(state.failure, words);
      await pause(POLL_MS, signal);
    }
  } catch (error) {
    await close();
    throw error;
  }
  return { path, ended, close };
}

function notMounted(cause: unknown, words: string): AppError {
  const need = "it needs nbdfuse (on Debian: apt install libnbd-bin fuse3) and leave to use /dev/fuse";
  const why =
    systemCode(cause) === "ENOENT"
      ? "nbdfuse is not installed"
      : words.trim().split("\n").at(-1) || "no answer";
  return new AppError("usage", "E_NO_FUSE", `The disk cannot be shown as a file: ${why}; ${need}`, {}, cause);
}
