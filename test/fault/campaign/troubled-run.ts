import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { runCli, type CliResult } from "../../support/cli.ts";
import { EXIT_CODE, EXIT_WARNINGS } from "../../../src/cli/exit-codes.ts";
import { SmallDisk } from "./full.ts";
import { NbdProxy } from "./nbd-proxy.ts";
import type { Place } from "./place.ts";
import type { FullPlan, RunPlan } from "./plan.ts";
import type { RoundFacts } from "./round-facts.ts";
import { S3Proxy } from "./s3-proxy.ts";
import { VERBS } from "./verbs.ts";

/** Whoever runs longer hangs, milliseconds: no planned fault lasts, nor do all of a run's retries together. */
const LIMIT_MS = 240_000;

/** What became of a run. */
export interface RunOutcome {
  readonly plan: RunPlan;
  readonly result: CliResult;
  /** Kinds of all faults that it met. */
  readonly hits: readonly string[];
  /** What was wrong, in words. */
  readonly problems: readonly string[];
  readonly requests: readonly string[];
  readonly ms: number;
}

/** Runs the program once under its faults. @returns undefined when there was nothing for it to do. */
export async function runTroubled(
  place: Place,
  plan: RunPlan,
  facts: RoundFacts,
  name: string,
  stopped: AbortSignal,
): Promise<RunOutcome | undefined> {
  const folder = join(place.folder, name);
  await mkdir(folder);
  const small =
    plan.full?.what === "cache and target"
      ? SmallDisk.mount(join(folder, "small"), plan.full.bytes)
      : undefined;
  const own = small?.path ?? folder;
  const verb = await VERBS[plan.verb].start(place, plan, facts, plan.verb === "restore" ? own : folder);
  if (verb === undefined) {
    small?.unmount();
    return undefined;
  }
  const s3 =
    place.life.kind === "bucket"
      ? await S3Proxy.open(place.world.minio.endpoint, plan.s3, place.world.uploads)
      : undefined;
  const nbd = verb.nbd === undefined ? undefined : await NbdProxy.open(verb.nbd.socket, plan.nbd);
  const ending = new Ending(plan, stopped);
  if (s3 !== undefined) s3.onKill = () => ending.kill();
  const cache = small?.path ?? join(place.folder, `cache-${plan.host}`);
  const startedMs = performance.now();
  try {
    const args = [...verb.args(nbd?.uri(verb.nbd!.name) ?? ""), "-r", place.location, "--cache-dir", cache];
    const result = await runCli(args, {
      env: place.environment(s3?.endpoint),
      under: plan.full?.what === "every file" ? ["prlimit", `--fsize=${plan.full.bytes}`] : [],
      started: (child) => ending.watch(child),
      ...(verb.program !== undefined && { program: verb.program }),
    });
    const ms = Math.round(performance.now() - startedMs);
    const hits = [
      ...(s3?.hits ?? []).map((kind) => `s3 ${kind}`),
      ...(nbd?.hits ?? []).map((kind) => `nbd ${kind}`),
      ...ending.hits,
      ...feltFull(plan.full, facts, result),
    ];
    const expected = expectedCodes(plan, facts, hits, [
      ...verb.codes,
      ...(stopped.aborted ? [EXIT_CODE.cancelled] : []),
    ]);
    const problems = [
      ...(ending.hung ? [`it had not ended after ${LIMIT_MS / 1000} s`] : outcomeProblems(result, expected)),
      ...(await verb.judge(result)),
    ];
    return { plan, result, hits, problems, requests: s3?.log ?? [], ms };
  } finally {
    await s3?.close();
    await nbd?.close();
    await verb.close();
    small?.unmount();
  }
}

/** Ends a run by signals: as planned, when a request asks for it, when it hangs, or when the campaign is stopped. */
class Ending {
  readonly hits: string[] = [];
  hung = false;
  readonly #plan: RunPlan;
  readonly #stopped: AbortSignal;
  #child: ChildProcess | undefined;

  constructor(plan: RunPlan, stopped: AbortSignal) {
    this.#plan = plan;
    this.#stopped = stopped;
  }

  watch(child: ChildProcess): void {
    this.#child = child;
    const { stop } = this.#plan;
    const late = setTimeout(() => {
      this.hung = true;
      child.kill("SIGKILL");
    }, LIMIT_MS);
    const planned =
      stop &&
      setTimeout(() => {
        if (child.kill(stop.signal)) this.hits.push(stop.signal);
      }, stop.afterMs);
    const onStopped = (): void => void child.kill("SIGINT");
    this.#stopped.addEventListener("abort", onStopped, { once: true });
    void once(child, "exit").then(() => {
      clearTimeout(late);
      clearTimeout(planned);
      this.#stopped.removeEventListener("abort", onStopped);
    });
  }

  async kill(): Promise<void> {
    const child = this.#child!;
    if (child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, "exit");
    child.kill("SIGKILL");
    await exited;
  }
}

/** A run that ran out of room says so in its error or warning. */
function feltFull(full: FullPlan | undefined, { narrow }: RoundFacts, { stderr }: CliResult): string[] {
  const what = full?.what ?? (narrow ? "repository" : undefined);
  const told = /space|too (?:large|big)|ENOSPC|EFBIG|full|SQLITE|disk I\/O/i.test(stderr);
  return what !== undefined && told ? [`full ${what}`] : [];
}

/** Exit codes that the faults explain which a run really met, or may have met by others' (E_LOCKED). */
function expectedCodes(
  plan: RunPlan,
  { narrow }: RoundFacts,
  hits: readonly string[],
  own: readonly number[],
): Set<number> {
  const codes = new Set([0, EXIT_CODE.locked, ...own]);
  const add = (when: boolean, ...more: number[]): void => {
    if (when) for (const code of more) codes.add(code);
  };
  add(
    hits.some((hit) => hit.startsWith("s3 ")),
    EXIT_CODE.unavailable,
  );
  add(hits.includes("s3 damage answer"), EXIT_CODE.corrupt, EXIT_CODE.credentials, EXIT_CODE.usage);
  add(
    hits.some((hit) => hit.startsWith("nbd ")),
    EXIT_CODE.source,
  );
  add(plan.full !== undefined || narrow, EXIT_CODE.full, EXIT_CODE.source);
  add(hits.includes("SIGINT"), EXIT_CODE.cancelled);
  return codes;
}

const CLOSED_SET = new Set<number>([0, EXIT_WARNINGS, ...Object.values(EXIT_CODE)]);

function outcomeProblems(result: CliResult, expected: ReadonlySet<number>): string[] {
  const { code, signal, stderr } = result;
  const problems: string[] = [];
  if (code !== null && !CLOSED_SET.has(code)) problems.push(`exit code ${code} is not one of ours`);
  else if (code !== null && !expected.has(code)) problems.push(`exit code ${code} is explained by nothing`);
  const asked = signal === "SIGKILL" || signal === "SIGINT"; // the latter before it had begun to listen
  if (code === null && !asked) problems.push(`ended by ${signal}`);
  if (/^ {4}at /m.test(stderr)) problems.push("a stack trace on stderr");
  return problems;
}
