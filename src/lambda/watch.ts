import { AppError, messageOf } from "../errors.ts";
import type { Environment } from "../jobs/interpolate.ts";
import { WorkQueue } from "../queue/queue.ts";
import { publish } from "../queue/topic.ts";
import { changeOf, idOf, type Change, type Finding } from "../watch/findings.ts";
import { findingsOfNotes, lookAtAll } from "../watch/look.ts";
import { Notes } from "../watch/notes.ts";
import { Deadline } from "./deadline.ts";
import { functionRunner, loadJobs, optional, type LambdaContext } from "./edge.ts";
import { metricDocuments } from "./embedded-metrics.ts";
import { Log, writeLine } from "./log.ts";

/** Lines of a message to people. */
const LINES_MAX = 100;

export interface WatchResult {
  readonly findings: readonly string[];
  /** What people were told now. */
  readonly told: { readonly come: number; readonly gone: number };
}

/**
 * Looks whether backups happen, and tells it in metrics each time, and people when something has changed: what comes and what
 * goes, each once.
 *
 * What it told stands in `BLOCKHAUL_NOTES`, and is noted when it has been told: one that dies in between tells it again.
 */
export async function handler(_event: unknown, context: LambdaContext): Promise<WatchResult> {
  const environment = process.env;
  const log = new Log(context);
  using deadline = new Deadline(context);
  const { signal } = deadline;
  const now = new Date();
  try {
    const file = await loadJobs(environment, signal);
    const look = await lookAtAll(file, functionRunner(environment, context), signal);
    const notes = await openNotes(environment);
    try {
      const read = (await notes?.read(signal)) ?? [];
      const letters = await deadLetters(environment, signal);
      const findings = [
        ...look.findings,
        ...findingsOfNotes(read, file.jobs, look.sources, now),
        ...letters.findings,
      ];
      for (const document of metricDocuments(look.sources, findings, now)) writeLine({ ...document });
      for (const finding of findings) log.warn(finding.message, { finding: idOf(finding) });
      const unknown = [...look.unknown, ...letters.unknown];
      const told = await tell({ findings, unknown }, notes, environment, now, signal);
      return { findings: findings.map(idOf), told };
    } finally {
      notes?.close();
    }
  } catch (error) {
    log.error(error);
    throw error;
  }
}

/** @throws AppError E_ENVIRONMENT (usage): there is somebody to tell, and nothing to remember by what was told. */
async function openNotes(environment: Environment): Promise<Notes | undefined> {
  const location = optional(environment, "BLOCKHAUL_NOTES");
  if (location !== undefined) return await Notes.open(location);
  if (optional(environment, "BLOCKHAUL_TOPIC_ARN") === undefined) return undefined;
  const message =
    "BLOCKHAUL_TOPIC_ARN needs BLOCKHAUL_NOTES, where the watch keeps what it has told: s3://BUCKET/PREFIX, outside of the repository";
  throw new AppError("usage", "E_ENVIRONMENT", message, { variable: "BLOCKHAUL_NOTES" });
}

/** Messages that failed too often, by `BLOCKHAUL_DEAD_LETTER_URLS`: URLs of queues with commas between. */
async function deadLetters(
  environment: Environment,
  signal: AbortSignal,
): Promise<{ readonly findings: readonly Finding[]; readonly unknown: readonly string[] }> {
  const urls = optional(environment, "BLOCKHAUL_DEAD_LETTER_URLS")?.split(",") ?? [];
  const findings: Finding[] = [];
  let known = true;
  for (const url of urls) {
    const queue = new WorkQueue(url.trim(), environment);
    const subject = url.split("/").at(-1)!;
    try {
      const waiting = await queue.waiting(signal);
      if (waiting === 0) continue;
      const message = `${waiting} messages in ${subject} failed too often; mend what their logs tell, and send them back`;
      findings.push({ kind: "letters", place: "queues", subject, message });
    } catch (error) {
      signal.throwIfAborted();
      known = false;
      const message = `The queue ${subject} cannot be looked at: ${messageOf(error)}`;
      findings.push({ kind: "unreachable", place: "queues", subject, message });
    } finally {
      queue.close();
    }
  }
  return { findings, unknown: known ? [] : ["queues"] };
}

async function tell(
  look: Parameters<typeof changeOf>[0],
  notes: Notes | undefined,
  environment: Environment,
  now: Date,
  signal: AbortSignal,
): Promise<WatchResult["told"]> {
  if (notes === undefined) return { come: 0, gone: 0 };
  const before = await notes.state(signal);
  const change = changeOf(look, before, now);
  const { come, gone } = change;
  if (come.length === 0 && gone.length === 0) return { come: 0, gone: 0 };
  const topic = optional(environment, "BLOCKHAUL_TOPIC_ARN");
  if (topic !== undefined) await publish(topic, wordsOf(change, before), environment, signal);
  await notes.remember(change.state, signal);
  return { come: come.length, gone: gone.length };
}

function wordsOf(
  { come, gone, state }: Change,
  before: Readonly<Record<string, string>>,
): { readonly subject: string; readonly text: string } {
  const first = come[0]?.message ?? `Over: ${gone[0] ?? ""}`;
  const others = come.length + gone.length - 1;
  const subject = `Blockhaul: ${first.slice(0, 70)}${others > 0 ? ` (and ${others} more)` : ""}`;
  const still = Object.keys(state).length - come.length;
  const lines = [
    ...come.map(({ message }) => message),
    ...gone.map((id) => `Over: ${id}, which was so since ${before[id] ?? "?"}`),
  ];
  const left = lines.length - LINES_MAX;
  const rest = left > 0 ? [`and ${left} more`] : [];
  const known = still > 0 ? ["", `${still} known before and not over`] : [];
  return { subject, text: [...lines.slice(0, LINES_MAX), ...rest, ...known].join("\n") };
}
