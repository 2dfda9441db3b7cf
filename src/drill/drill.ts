import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import { AppError, type ErrorCode } from "../errors.ts";
import { NbdServer } from "../nbd/server/server.ts";
import type { DrillProof } from "../repository/drills.ts";
import type { ManifestDisk, StoredManifest } from "../repository/manifest.ts";
import type { ReadTools } from "../repository/read-tools.ts";
import { openExports } from "../serve/exports.ts";
import type { Accelerator } from "./accelerator.ts";
import type { SerialConsole } from "./console.ts";
import { placeIn, type MachineWish } from "./machine-arguments.ts";
import { Machine } from "./machine.ts";
import { agentAnswers, scriptPasses } from "./proofs.ts";
import { WatchedDisk, type WritableDisk } from "./watched-disk.ts";

/** What is to be shown by a guest that boots; all that is given must be. */
export interface ProofWish {
  /** The guest agent answers. */
  readonly agent: boolean;
  /** The serial console says something that matches. */
  readonly console: RegExp | undefined;
  /** A program of the user's ends with 0. It is started when the others are shown. */
  readonly script: string | undefined;
}

export interface DrillWish {
  readonly machine: MachineWish;
  readonly proofs: ProofWish;
  /** Milliseconds from the beginning of the command. */
  readonly timeoutMs: number;
  /** A folder with space for what the guest writes; everything in it goes afterwards. */
  readonly scratch: string;
  /** Most bytes of chunks that are kept in memory. */
  readonly cacheBytes: number;
  /** By `performance.now()`: when the command began. */
  readonly startedMs: number;
  /** A script gets it, and what it is to know of the drill. */
  readonly environment: Readonly<Record<string, string | undefined>>;
}

/** What came of a drill. */
export interface DrillResult {
  readonly proofs: readonly DrillProof[];
  /** Why it failed; undefined: it passed. */
  readonly failure: AppError | undefined;
  readonly accelerator: Accelerator | null;
  readonly seconds: number;
  readonly bytesFetched: number;
  readonly bytesRead: number;
  readonly bytesWritten: number;
  /** The last lines of the guest's console, for people. */
  readonly console: string;
}

/** Lines of the console that are shown. */
const CONSOLE_LINES = 25;

/** After this no guest comes up by itself: words of SeaBIOS, and of Linux. */
const HOPELESS = /No bootable device\.|^(?:\[ *\d+\.\d+\] )?Kernel panic - not syncing[^\n]*\n/m;

/** Failures that say something of the generation; all others only say that there was no drill. */
const VERDICTS: ReadonlySet<ErrorCode> = new Set([
  "E_DRILL_ENDED",
  "E_DRILL_TIMEOUT",
  "E_DRILL_CONSOLE",
  "E_DRILL_SCRIPT",
]);

/** Facts that are gathered on the way, and count whatever happens. */
class Findings {
  readonly #startedMs: number;
  readonly #proofs = new Map<DrillProof["kind"], number | null>();
  bytesFetched = (): number => 0;
  disks: readonly WatchedDisk[] = [];
  console: SerialConsole | undefined;

  constructor({ startedMs, proofs }: DrillWish) {
    this.#startedMs = startedMs;
    if (proofs.agent) this.#proofs.set("agent", null);
    if (proofs.console !== undefined) this.#proofs.set("console", null);
    if (proofs.script !== undefined) this.#proofs.set("script", null);
  }

  get seconds(): number {
    return (performance.now() - this.#startedMs) / 1000;
  }

  get missing(): readonly DrillProof["kind"][] {
    return [...this.#proofs].flatMap(([kind, seconds]) => (seconds === null ? [kind] : []));
  }

  shown(kind: DrillProof["kind"]): void {
    this.#proofs.set(kind, this.seconds);
  }

  result(accelerator: Accelerator | null, failure: AppError | undefined): DrillResult {
    const sum = (pick: (disk: WatchedDisk) => number): number =>
      this.disks.reduce((total, disk) => total + pick(disk), 0);
    return {
      proofs: [...this.#proofs].map(([kind, seconds]) => ({ kind, seconds })),
      failure,
      accelerator,
      seconds: this.seconds,
      bytesFetched: this.bytesFetched(),
      bytesRead: sum(({ use }) => use.bytesRead),
      bytesWritten: sum(({ use }) => use.bytesWritten),
      console: this.console?.tail(CONSOLE_LINES) ?? "",
    };
  }
}

/**
 * Boots a generation on a throwaway overlay, without network, and waits for what proves that it is alive. When this
 * settles nothing of it is left: no process, no file.
 *
 * @returns also when the drill failed: then with a `failure` of kind corrupt (data is damaged) or source (the guest did
 *   not come up).
 * @throws AppError when there was no drill: E_DRILL_NO_QEMU, E_DRILL_SCRIPT_FILE (usage), E_DRILL_QEMU (source), those of
 *   the store, and the signal's reason.
 */
export async function runDrill(
  tools: ReadTools,
  manifest: StoredManifest,
  disks: readonly ManifestDisk[],
  wish: DrillWish,
  signal: AbortSignal,
): Promise<DrillResult> {
  const findings = new Findings(wish);
  const attempt = new AbortController();
  const stop = (reason: unknown): void => attempt.abort(reason);
  const leftMs = Math.max(0, wish.timeoutMs - findings.seconds * 1000);
  const timer = setTimeout(() => stop(tooLate(findings, wish.timeoutMs)), leftMs);
  const folder = await mkdtemp(join(wish.scratch, "blockhaul-drill-"));
  let failure: unknown;
  try {
    const either = AbortSignal.any([signal, attempt.signal]);
    await serveAndBoot({ tools, manifest, disks, wish, findings, folder, stop }, either);
  } catch (error) {
    failure = attempt.signal.aborted ? attempt.signal.reason : error; // what came first is why
  } finally {
    clearTimeout(timer);
    await rm(folder, { recursive: true, force: true });
  }
  signal.throwIfAborted();
  const verdict = isVerdict(failure) ? failure : undefined;
  if (failure !== undefined && verdict === undefined) throw failure as Error;
  return findings.result(wish.machine.accelerator, verdict);
}

interface Attempt {
  readonly tools: ReadTools;
  readonly manifest: StoredManifest;
  readonly disks: readonly ManifestDisk[];
  readonly wish: DrillWish;
  readonly findings: Findings;
  readonly folder: string;
  /** Ends the attempt with this reason. */
  readonly stop: (reason: unknown) => void;
}

async function serveAndBoot(attempt: Attempt, signal: AbortSignal): Promise<void> {
  const { tools, manifest, disks, wish, findings, folder, stop } = attempt;
  const overlay = join(folder, "overlay");
  await mkdir(overlay);
  const exports = await openExports(tools, manifest, disks, { cacheBytes: wish.cacheBytes, overlay }, signal);
  try {
    findings.bytesFetched = exports.bytesFetched;
    // each with its overlay, by what was asked for
    const watched = [...exports.disks].map(
      ([name, disk]) => [name, new WatchedDisk(disk as WritableDisk, stop)] as const,
    );
    findings.disks = watched.map(([, disk]) => disk);
    const place = placeIn(folder, [...exports.disks.keys()]);
    const server = await NbdServer.listen(new Map(watched), { path: place.nbd });
    try {
      await boot(attempt, place, (name) => server.uri(name), signal);
    } finally {
      await server.close();
    }
  } finally {
    await exports.close();
  }
}

async function boot(
  { manifest, wish, findings, stop }: Attempt,
  place: ReturnType<typeof placeIn>,
  uri: (disk: string) => string,
  signal: AbortSignal,
): Promise<void> {
  const { agent, console: pattern, script } = wish.proofs;
  let said: Promise<unknown> | undefined;
  let done = false;
  const machine = await Machine.start(wish.machine, place, (console) => {
    findings.console = console;
    if (pattern !== undefined) said = console.said(pattern);
    void console.said(HOPELESS).then((words) => stop(gaveUp(words)));
  });
  try {
    machine.over.catch((ended: unknown) => {
      if (!done) stop(ended);
    });
    await Promise.all([
      agent && agentAnswers(place.agent, signal).then(() => findings.shown("agent")),
      said !== undefined && unlessAborted(said, signal).then(() => findings.shown("console")),
    ]);
    if (script === undefined) return;
    const facts = {
      DRILL_SOURCE: manifest.source,
      DRILL_GENERATION: manifest.generation,
      DRILL_AGENT: place.agent,
      DRILL_DISKS: place.disks.map(uri).join("\n"),
    };
    await scriptPasses({ file: script, environment: { ...wish.environment, ...facts } }, signal);
    findings.shown("script");
  } finally {
    done = true;
    await machine.kill();
  }
}

async function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted();
  const aborted = Promise.withResolvers<never>();
  const leave = (): void => aborted.reject(signal.reason);
  signal.addEventListener("abort", leave, { once: true });
  try {
    return await Promise.race([work, aborted.promise]);
  } finally {
    signal.removeEventListener("abort", leave);
  }
}

function isVerdict(error: unknown): error is AppError {
  return error instanceof AppError && (error.kind === "corrupt" || VERDICTS.has(error.code));
}

const MISSING: Readonly<Record<DrillProof["kind"], string>> = {
  agent: "the guest agent had not answered",
  console: "the console had not said what was waited for",
  script: "the script had not ended",
  files: "the file systems were not all checked",
};

function tooLate(findings: Findings, timeoutMs: number): AppError {
  const what = findings.missing.map((kind) => MISSING[kind]).join(", and ");
  return new AppError("source", "E_DRILL_TIMEOUT", `After ${timeoutMs / 1000} s ${what}`, { timeoutMs });
}

function gaveUp(words: string): AppError {
  return new AppError(
    "source",
    "E_DRILL_CONSOLE",
    `The guest cannot come up; its console says: ${words.trim()}`,
  );
}
