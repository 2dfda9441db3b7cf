import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import { AppError, messageOf, type ErrorCode } from "../errors.ts";
import type { DrillProof } from "../repository/drills.ts";
import type { ManifestDisk, StoredManifest } from "../repository/manifest.ts";
import type { ReadTools } from "../repository/read-tools.ts";
import { withThrowaway, type WritableDisk } from "../serve/throwaway.ts";
import { bootAndWait, type Boot } from "./boot.ts";
import { Findings, type DrillResult } from "./findings.ts";
import { inspectFileSystems } from "./inspect.ts";
import { WatchedDisk } from "./watched-disk.ts";

export interface DrillWish {
  /** What is booted and waited for; undefined: nothing is, and file systems are checked from outside. */
  readonly boot: Boot | undefined;
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

/** Failures that say something of the generation; all others only say that there was no drill. */
const VERDICTS: ReadonlySet<ErrorCode> = new Set([
  "E_DRILL_ENDED",
  "E_DRILL_TIMEOUT",
  "E_DRILL_CONSOLE",
  "E_DRILL_SCRIPT",
  "E_DRILL_FILES",
]);

/**
 * Boots a generation on a throwaway overlay, without network, and waits for what proves that it is alive; or checks its
 * file systems there. When this settles nothing of it is left: no process, no file.
 *
 * @returns also when the drill failed: then with a `failure` of kind corrupt (data is damaged) or source (the guest did
 *   not come up, or a file system is damaged).
 * @throws AppError when there was no drill: E_DRILL_NO_QEMU, E_DRILL_SCRIPT_FILE, E_SCRATCH (usage), E_DRILL_QEMU,
 *   E_DRILL_NO_CHECK (source), those of the store, and the signal's reason.
 */
export async function runDrill(
  tools: ReadTools,
  manifest: StoredManifest,
  disks: readonly ManifestDisk[],
  wish: DrillWish,
  signal: AbortSignal,
): Promise<DrillResult> {
  const findings = new Findings(wish.startedMs, askedFor(wish));
  const attempt = new AbortController();
  const stop = (reason: unknown): void => attempt.abort(reason);
  const folder = await mkdtemp(join(wish.scratch, "blockhaul-drill-")).catch((error: unknown) => {
    const message = `No folder can be made in ${wish.scratch}; name another with --scratch: ${messageOf(error)}`;
    throw new AppError("usage", "E_SCRATCH", message, {}, error);
  });
  const leftMs = Math.max(0, wish.timeoutMs - findings.seconds * 1000);
  const timer = setTimeout(() => stop(tooLate(findings, wish.timeoutMs)), leftMs);
  let failure: unknown;
  try {
    const either = AbortSignal.any([signal, attempt.signal]);
    await serveAndProve({ tools, manifest, disks, wish, findings, folder, stop }, either);
  } catch (error) {
    failure = attempt.signal.aborted ? attempt.signal.reason : error; // what came first is why
  } finally {
    clearTimeout(timer);
    await rm(folder, { recursive: true, force: true });
  }
  signal.throwIfAborted();
  const verdict = isVerdict(failure) ? failure : undefined;
  if (failure !== undefined && verdict === undefined) throw failure as Error;
  return findings.result(wish.boot?.machine.accelerator ?? null, verdict);
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

async function serveAndProve(attempt: Attempt, signal: AbortSignal): Promise<void> {
  const { tools, manifest, disks, wish, findings, folder, stop } = attempt;
  const wrap = (disk: WritableDisk): WatchedDisk => new WatchedDisk(disk, stop);
  const options = { folder, cacheBytes: wish.cacheBytes, wrap };
  await withThrowaway(tools, manifest, disks, options, signal, async (served) => {
    findings.bytesFetched = served.bytesFetched;
    findings.disks = [...served.disks.values()];
    if (wish.boot === undefined) {
      await inspectFileSystems(served, folder, (volume) => findings.volumes.push(volume), signal);
      findings.shown("files");
      return;
    }
    const names = [...served.disks.keys()];
    const place = { nbd: served.socket, disks: names, agent: join(folder, "agent.sock") };
    const environment = {
      ...wish.environment,
      DRILL_SOURCE: manifest.source,
      DRILL_GENERATION: manifest.generation,
      DRILL_AGENT: place.agent,
      DRILL_DISKS: names.map((disk) => served.server.uri(disk)).join("\n"),
    };
    await bootAndWait(wish.boot, { place, findings, environment, stop }, signal);
  });
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

function askedFor({ boot }: DrillWish): DrillProof["kind"][] {
  if (boot === undefined) return ["files"];
  const { agent, console, script } = boot.proofs;
  return [
    ...(agent ? (["agent"] as const) : []),
    ...(console !== undefined ? (["console"] as const) : []),
    ...(script !== undefined ? (["script"] as const) : []),
  ];
}
