import type { DrillProof, DrillRecord } from "../repository/drills.ts";
import { uuidTime } from "../repository/names.ts";
import { table } from "./output.ts";

/** A drill in `--json` documents; README.md, "JSON", promises these fields. */
export function drillDocument(record: DrillRecord): object {
  const { source, generation, drill, endedAt, outcome, proofs, error, accelerator, seconds } = record;
  const { bytesFetched, bytesRead, bytesWritten, requests, host } = record;
  return {
    source,
    generation,
    drill,
    startedAt: startOf(record),
    endedAt,
    outcome,
    proofs,
    error,
    accelerator,
    seconds,
    bytesFetched,
    bytesRead,
    bytesWritten,
    requests,
    host,
  };
}

const NOUN: Readonly<Record<DrillProof["kind"], string>> = {
  agent: "agent",
  console: "console",
  script: "script",
  files: "file systems",
};

/** "agent after 12.3 s", "no script". */
export function proofText({ kind, seconds }: DrillProof): string {
  return seconds === null ? `no ${NOUN[kind]}` : `${NOUN[kind]} after ${seconds.toFixed(1)} s`;
}

/** The last drill of each source. */
export function drillTable(records: readonly DrillRecord[]): string {
  return table(
    ["SOURCE", "LAST DRILL", "RESULT", "GENERATION", "SEEN", "WHY"],
    records.map((record) => [
      record.source,
      startOf(record).replace(/\.\d+Z$/, "Z"),
      record.outcome,
      record.generation,
      record.proofs.map(proofText).join(", "),
      record.error?.message ?? "",
    ]),
  );
}

function startOf({ drill }: DrillRecord): string {
  return new Date(uuidTime(drill) ?? 0).toISOString();
}
