import type { Finding, FindingKind } from "../watch/findings.ts";
import type { SourceNumbers } from "../watch/look-at-repository.ts";

const NAMESPACE = "Blockhaul";

type Unit = "Seconds" | "Bytes" | "Count";
type Metrics = Readonly<Record<string, readonly [unit: Unit, value: number | undefined]>>;

/**
 * Documents of CloudWatch's embedded metric format: as lines of a log they become metrics, without a request.
 *
 * @see https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
 */
export function metricDocuments(
  sources: readonly SourceNumbers[],
  findings: readonly Finding[],
  now: Date,
): object[] {
  const about = (job: string, source: string): number =>
    findings.filter(({ subject }) => subject === source || subject === `${job}/${source}`).length;
  const ofSources = sources.map(({ job, source, ageMs, newest }) => {
    const stats = newest?.stats;
    const metrics: Metrics = {
      Age: ["Seconds", ageMs === undefined ? undefined : Math.round(ageMs / 1000)],
      Findings: ["Count", about(job, source)],
      Duration: ["Seconds", stats?.seconds],
      BytesRead: ["Bytes", stats?.bytesRead],
      BytesStored: ["Bytes", stats?.bytesStored],
      BytesPacked: ["Bytes", stats?.bytesPacked],
    };
    return document({ Job: job, Source: source }, metrics, now);
  });
  const kinds = Map.groupBy(findings, ({ kind }) => kind);
  const count = (kind: FindingKind): readonly [Unit, number] => ["Count", kinds.get(kind)?.length ?? 0];
  const all: Metrics = {
    Findings: ["Count", findings.length],
    Late: count("late"),
    Failed: count("failed"),
    Died: count("died"),
    Uncovered: count("uncovered"),
    StaleLeases: count("lease"),
    AbandonedUploads: count("uploads"),
    Damaged: count("damaged"),
    Unreachable: count("unreachable"),
    FunctionFailures: count("function"),
    AgentFailures: count("agent"),
    DeadLetters: count("letters"),
    Jumps: ["Count", (kinds.get("growth")?.length ?? 0) + (kinds.get("entropy")?.length ?? 0)],
  };
  return [...ofSources, document({}, all, now)];
}

function document(dimensions: Readonly<Record<string, string>>, metrics: Metrics, now: Date): object {
  const known = Object.entries(metrics).filter(([, [, value]]) => value !== undefined);
  return {
    _aws: {
      Timestamp: now.getTime(),
      CloudWatchMetrics: [
        {
          Namespace: NAMESPACE,
          Dimensions: [Object.keys(dimensions)],
          Metrics: known.map(([Name, [Unit]]) => ({ Name, Unit })),
        },
      ],
    },
    ...dimensions,
    ...Object.fromEntries(known.map(([name, [, value]]) => [name, value])),
  };
}
