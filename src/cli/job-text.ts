import { formatSize } from "../bytes/size.ts";
import { AppError, messageOf } from "../errors.ts";
import type { JobOutcome } from "../jobs/run-job.ts";
import type { SourceOutcome } from "../jobs/run-source.ts";
import type { UpkeepOutcome } from "../jobs/upkeep.ts";
import type { PruneReport } from "../upkeep/prune/prune-report.ts";
import type { VerifyReport } from "../upkeep/verify.ts";
import { generationDocument, NO_HOLDS } from "./documents.ts";
import { table } from "./output.ts";
import { formatSeconds } from "./progress.ts";

/** What a `run` did, for `--json`; README.md, "JSON", promises these fields. */
export function jobsDocument(outcomes: readonly JobOutcome[]): object {
  return {
    jobs: outcomes.map(({ job, sources, upkeep, notDue, notRun, error }) => ({
      job,
      error: errorDocument(error),
      sources: sources.map(({ source, seconds, failure, report, retention }) => ({
        source,
        result: failure === undefined ? "done" : "failed",
        step: failure?.step ?? null,
        error: errorDocument(failure?.error),
        seconds,
        generation: report === undefined ? null : generationDocument(report.manifest, NO_HOLDS),
        stats: report?.stats ?? null,
        ...(report?.guest && { guest: report.guest }),
        forgotten: retention?.remove.map(({ generation }) => generation) ?? [],
      })),
      upkeep: upkeep.map(({ step, seconds, error: failure, report }) => ({
        step,
        result: failure === undefined ? "done" : "failed",
        error: errorDocument(failure),
        seconds,
        report: report ?? null,
      })),
      notDue,
      notRun,
    })),
  };
}

function errorDocument(error: unknown): object | null {
  if (error === undefined) return null;
  const known = error instanceof AppError;
  return {
    kind: known ? error.kind : "bug",
    code: known ? error.code : null,
    message: messageOf(error),
  };
}

/** A line for each source and each upkeep. */
export function jobsText(outcomes: readonly JobOutcome[]): string {
  const rows = outcomes.flatMap(({ job, sources, upkeep, notDue, notRun }) => [
    ...sources.map((one) => [job, one.source, ...sourceCells(one)]),
    ...notRun.map((source) => [job, source, "not run", "", ""]),
    ...upkeep.map((one) => [job, `(${one.step})`, ...upkeepCells(one)]),
    ...notDue.map((step) => [job, `(${step})`, "not due", "", ""]),
  ]);
  return table(["JOB", "SOURCE", "RESULT", "TIME", ""], rows);
}

function sourceCells({ failure, seconds, report, retention }: SourceOutcome): string[] {
  const result = failure === undefined ? "done" : `failed: ${failure.step}`;
  const words: string[] = [];
  if (report !== undefined) {
    const { manifest, stats } = report;
    const stored = formatSize(stats.bytesPacked + stats.metadataBytes);
    words.push(
      `${manifest.kind} ${manifest.generation}, read ${formatSize(stats.bytesRead)}, stored ${stored}`,
    );
  }
  if (retention !== undefined && retention.remove.length > 0)
    words.push(`${retention.remove.length} forgotten`);
  if (failure !== undefined) words.push(messageOf(failure.error));
  return [result, formatSeconds(seconds), words.join("; ")];
}

function upkeepCells({ error, seconds, report }: UpkeepOutcome): string[] {
  const result = error === undefined ? "done" : "failed";
  const words = [
    report === undefined ? "" : upkeepWords(report),
    error === undefined ? "" : messageOf(error),
  ];
  return [result, formatSeconds(seconds), words.filter((one) => one !== "").join("; ")];
}

function upkeepWords(report: PruneReport | VerifyReport): string {
  if ("packsRead" in report) {
    return `${report.generations} generations, ${report.packsRead} of ${report.packs} packs read`;
  }
  return `${formatSize(report.deleted.bytes)} deleted, ${formatSize(report.condemned.bytes)} condemned`;
}
