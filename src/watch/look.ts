import type { Runner } from "../jobs/job.ts";
import { jobsOf } from "../jobs/job.ts";
import type { JobEntry, JobFile } from "../jobs/schema.ts";
import type { Finding, Look } from "./findings.ts";
import { lookAtRepository, type SourceNumbers } from "./look-at-repository.ts";
import type { Note } from "./notes.ts";

/** What is about nothing that the file has is forgotten after a while, milliseconds. */
const LOOSE_NOTE_MS = 24 * 3_600_000;

/** A function that was ended by force may have been so a little late, milliseconds. */
const SLACK_MS = 60_000;

export interface WholeLook extends Look {
  readonly sources: readonly SourceNumbers[];
}

/** Looks at every repository of a file, one after the other, and at what no job covers. */
export async function lookAtAll(file: JobFile, runner: Runner, signal: AbortSignal): Promise<WholeLook> {
  const findings: Finding[] = uncovered(file);
  const unknown: string[] = [];
  const sources: SourceNumbers[] = [];
  const byRepository = Map.groupBy(jobsOf(file), ({ entry }) => entry.repository);
  for (const [repository, jobs] of byRepository) {
    const look = await lookAtRepository(repository, jobs, runner, signal);
    findings.push(...look.findings);
    sources.push(...look.sources);
    if (!look.known) unknown.push(repository);
  }
  return { findings, unknown, sources };
}

function uncovered({ sources, jobs }: JobFile): Finding[] {
  const covered = new Set(Object.values(jobs).flatMap((job) => job.sources));
  const names = Object.keys(sources).filter((source) => !covered.has(source));
  return names.map((source) => {
    const message = `Source ${source} is in no job: nothing backs it up`;
    return { kind: "uncovered", place: "jobs", subject: source, message };
  });
}

/**
 * What the notes of functions and agents tell.
 *
 * @param jobs of the file. @param sources what is known of theirs: a note on one that has been backed up since is over.
 */
export function findingsOfNotes(
  notes: readonly Note[],
  jobs: Readonly<Record<string, Pick<JobEntry, "sources">>>,
  sources: readonly SourceNumbers[],
  now: Date,
): Finding[] {
  return notes.flatMap((note): Finding[] => {
    if (isOver(note, jobs, sources, now)) return [];
    const { by, host, job, source, state, at, until, code = "", message = "" } = note;
    const ofAgent = by === "agent";
    const who = ofAgent ? `The agent on ${host ?? "?"}` : `The function ${by}`;
    const what = job === "" ? who : `${who} of job ${job}${source === "" ? "" : `, source ${source}`}`;
    const parts = ofAgent ? [job === "" ? (host ?? "") : job, source] : [by, job, source];
    const subject = parts.filter((part) => part !== "").join("/");
    const place = ofAgent
      ? ({ kind: "agent", place: "agents" } as const)
      : ({ kind: "function", place: "functions" } as const);
    const found = (words: string): Finding[] => [{ ...place, subject, message: `${what} ${words}` }];
    if (state === "failed") return found(`failed at ${at}: ${message} (${code})`);
    if (state !== "running" || until === undefined || now.getTime() <= Date.parse(until) + SLACK_MS)
      return [];
    return found(`began at ${at} and ended without a word: it ran out of time or memory`);
  });
}

function isOver(
  { by, job, source, at }: Note,
  jobs: Readonly<Record<string, Pick<JobEntry, "sources">>>,
  sources: readonly SourceNumbers[],
  now: Date,
): boolean {
  const entry = jobs[job];
  if (job !== "" && entry === undefined && by !== "dispatch") return true; // of a job that is no more
  const loose = entry === undefined || (source !== "" && !entry.sources.includes(source));
  if (loose) return now.getTime() - Date.parse(at) > LOOSE_NOTE_MS;
  const known = sources.find((one) => one.job === job && one.source === source);
  return known?.ageMs !== undefined && now.getTime() - known.ageMs > Date.parse(at);
}
