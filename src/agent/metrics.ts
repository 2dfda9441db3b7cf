import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { z } from "zod";
import { requestCost, type Prices } from "../store/prices.ts";
import { systemCode } from "../errors.ts";
import type { SourceOutcome } from "../jobs/run-source.ts";
import type { BackupOrder } from "../queue/orders.ts";
import type { Fulfilment } from "./fulfil.ts";

/** The latest run of a source, and the latest that went well; times in seconds since 1970. */
const recordSchema = z.object({
  job: z.string(),
  source: z.string(),
  attemptAt: z.number(),
  result: z.enum(["done", "failed", "locked"]),
  successAt: z.number().optional(),
  runs: z.object({ done: z.number(), failed: z.number(), locked: z.number() }),
  latest: z
    .object({
      seconds: z.number(),
      read: z.number(),
      unchanged: z.number(),
      deduplicated: z.number(),
      stored: z.number(),
      packed: z.number(),
      requests: z.record(z.string(), z.number()),
      cost: z.number().optional(),
    })
    .optional(),
});

type SourceRecord = z.infer<typeof recordSchema>;

/** Far more than any host has. */
const FILE_MAX = 16 * 1024 * 1024;

/** What a name means to Prometheus. */
interface Series {
  readonly name: string;
  readonly help: string;
  readonly type: "gauge" | "counter";
  readonly values: readonly {
    readonly labels: Readonly<Record<string, string>>;
    readonly value: number;
  }[];
}

/**
 * What an agent has done, as Prometheus reads it. Kept in a file beside the other local advice, so that a restart forgets
 * nothing; where that is lost the numbers begin anew.
 */
export class AgentMetrics {
  readonly #path: string;
  readonly #prices: Prices | undefined;
  readonly #sources = new Map<string, SourceRecord>();
  #running = 0;
  #listening = false;
  #saving: Promise<void> = Promise.resolve();

  private constructor(path: string, prices: Prices | undefined) {
    this.#path = path;
    this.#prices = prices;
  }

  /**
   * @param path of the file; its folder is made. @param prices of a repository in a bucket; undefined: nothing costs.
   * @throws errors of the file system, but when it is not there.
   */
  static async load(path: string, prices: Prices | undefined): Promise<AgentMetrics> {
    const metrics = new AgentMetrics(path, prices);
    const text = await readFile(path, "utf8").catch((error: unknown) => {
      if (systemCode(error) === "ENOENT") return "[]";
      throw error;
    });
    for (const record of parseRecords(text)) metrics.#sources.set(keyOf(record), record);
    return metrics;
  }

  listening(yes: boolean): void {
    this.#listening = yes;
  }

  began(): void {
    this.#running++;
  }

  /** @returns when it is kept. @throws errors of the file system. */
  async ended(order: BackupOrder, result: Fulfilment, nowMs = Date.now()): Promise<void> {
    this.#running--;
    if (result.kind === "already") return;
    const { job, source } = order;
    const before = this.#sources.get(keyOf(order));
    const runs = before?.runs ?? { done: 0, failed: 0, locked: 0 };
    const at = nowMs / 1000;
    const successAt = result.kind === "done" ? at : before?.successAt;
    const latest = result.kind === "done" ? this.#latest(result.outcome) : before?.latest;
    this.#sources.set(keyOf(order), {
      job,
      source,
      attemptAt: at,
      result: result.kind,
      runs: { ...runs, [result.kind]: runs[result.kind] + 1 },
      ...(successAt !== undefined && { successAt }),
      ...(latest !== undefined && { latest }),
    });
    this.#saving = this.#saving.catch(() => undefined).then(() => this.#save());
    await this.#saving;
  }

  /** In Prometheus' text format, version 0.0.4. */
  text(): string {
    return this.#series()
      .filter(({ values }) => values.length > 0)
      .map(seriesText)
      .join("");
  }

  #latest({ report, seconds }: SourceOutcome): SourceRecord["latest"] {
    if (report === undefined) return undefined;
    const { stats } = report;
    return {
      seconds,
      read: stats.bytesRead,
      unchanged: stats.bytesUnchanged,
      deduplicated: stats.bytesDeduplicated,
      stored: stats.bytesStored,
      packed: stats.bytesPacked,
      requests: { ...stats.requests },
      ...(this.#prices !== undefined && { cost: requestCost(stats.requests, this.#prices) }),
    };
  }

  async #save(): Promise<void> {
    await mkdir(dirname(this.#path), { recursive: true });
    await replaceFile(this.#path, JSON.stringify([...this.#sources.values()]));
  }

  #series(): Series[] {
    const records = [...this.#sources.values()];
    const of = (value: (record: SourceRecord) => number | undefined): Series["values"] =>
      records.flatMap((record) => {
        const found = value(record);
        return found === undefined ? [] : [{ labels: labelsOf(record), value: found }];
      });
    const gauge = (name: string, help: string, values: Series["values"]): Series => {
      return { name: `blockhaul_${name}`, help, type: "gauge", values };
    };
    return [
      gauge("agent_listening", "Whether the queue answers", [{ labels: {}, value: Number(this.#listening) }]),
      gauge("agent_running", "Runs that go on", [{ labels: {}, value: this.#running }]),
      gauge(
        "backup_last_attempt_timestamp_seconds",
        "End of the latest run",
        of((one) => one.attemptAt),
      ),
      gauge(
        "backup_last_success_timestamp_seconds",
        "End of the latest run that made a generation",
        of((one) => one.successAt),
      ),
      gauge(
        "backup_last_result",
        "Whether the latest run made a generation",
        of((one) => Number(one.result === "done")),
      ),
      {
        name: "blockhaul_backup_runs_total",
        help: "Runs by what became of them",
        type: "counter",
        values: records.flatMap((one) =>
          Object.entries(one.runs).map(([result, value]) => ({
            labels: { ...labelsOf(one), result },
            value,
          })),
        ),
      },
      gauge(
        "backup_duration_seconds",
        "Of the latest that made a generation",
        of((one) => one.latest?.seconds),
      ),
      gauge(
        "backup_read_bytes",
        "Read from the source",
        of((one) => one.latest?.read),
      ),
      gauge(
        "backup_unchanged_bytes",
        "Read and equal to the generation before",
        of((one) => one.latest?.unchanged),
      ),
      gauge(
        "backup_deduplicated_bytes",
        "Read and in the repository already",
        of((one) => one.latest?.deduplicated),
      ),
      gauge(
        "backup_stored_bytes",
        "New, before compression",
        of((one) => one.latest?.stored),
      ),
      gauge(
        "backup_packed_bytes",
        "New, as stored",
        of((one) => one.latest?.packed),
      ),
      gauge(
        "backup_requests",
        "Requests to the storage",
        records.flatMap((one) =>
          Object.entries(one.latest?.requests ?? {}).map(([operation, value]) => {
            return { labels: { ...labelsOf(one), operation }, value };
          }),
        ),
      ),
      gauge(
        "backup_request_cost",
        `What they cost, by the price sheet (${this.#prices?.currency ?? ""})`,
        of((one) => one.latest?.cost),
      ),
    ];
  }
}

/** Writes a file of which a reader sees all or nothing. */
export async function replaceFile(path: string, text: string): Promise<void> {
  const temporary = `${path}.tmp`;
  await writeFile(temporary, text, { mode: 0o644 });
  await rename(temporary, path);
}

/** What cannot be read counts as nothing. */
function parseRecords(text: string): SourceRecord[] {
  if (text.length > FILE_MAX) return [];
  try {
    const parsed = z.array(recordSchema).safeParse(JSON.parse(text));
    return parsed.success ? parsed.data : [];
  } catch {
    return [];
  }
}

function keyOf({ job, source }: Pick<BackupOrder, "job" | "source">): string {
  return `${job}/${source}`;
}

function labelsOf({ job, source }: SourceRecord): Record<string, string> {
  return { job, source };
}

function seriesText({ name, help, type, values }: Series): string {
  const lines = values.map(({ labels, value }) => {
    const pairs = Object.entries(labels).map(([label, text]) => `${label}="${escaped(text)}"`);
    return `${name}${pairs.length === 0 ? "" : `{${pairs.join(",")}}`} ${value}\n`;
  });
  return `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n${lines.join("")}`;
}

function escaped(text: string): string {
  return text.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");
}
