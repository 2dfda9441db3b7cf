import type { Runner } from "../jobs/job.ts";
import { jobsOf } from "../jobs/job.ts";
import type { JobFile } from "../jobs/schema.ts";
import type { Finding, Look } from "./findings.ts";
import { lookAtRepository, type SourceNumbers } from "./look-at-repository.ts";
import type { Note } from "./notes.ts";

/** What is about no job in particular is forgotten after a while, milliseconds. */
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

/** What the functions' notes tell. @param jobs names that are in the file; notes on others are old. */
export function findingsOfNotes(notes: readonly Note[], jobs: ReadonlySet<string>, now: Date): Finding[] {
  return notes.flatMap((note): Finding[] => {
    const { by, job, source, state, at, until, code = "", message = "" } = note;
    const subject = [by, job, source].filter((part) => part !== "").join("/");
    const what = job === "" ? by : `${by} of job ${job}${source === "" ? "" : `, source ${source}`}`;
    if (job === "" ? now.getTime() - Date.parse(at) > LOOSE_NOTE_MS : !jobs.has(job) && by !== "dispatch")
      return [];
    if (state === "failed") {
      const finding = `The function ${what} failed at ${at}: ${message} (${code})`;
      return [{ kind: "function", place: "functions", subject, message: finding }];
    }
    if (state !== "running" || until === undefined || now.getTime() <= Date.parse(until) + SLACK_MS)
      return [];
    const finding = `The function ${what} began at ${at} and ended without a word: it ran out of time or memory`;
    return [{ kind: "function", place: "functions", subject, message: finding }];
  });
}
