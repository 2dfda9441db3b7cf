import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished } from "vitest";
import { parseJobFile } from "../../src/jobs/job-file.ts";
import { jobsOf, type Runner } from "../../src/jobs/job.ts";
import { runJob, type JobListener, type JobOutcome } from "../../src/jobs/run-job.ts";
import type { JobFile } from "../../src/jobs/schema.ts";
import { createRepository } from "../../src/repository/config.ts";
import { openNewStore } from "../../src/store/open.ts";

/** A folder with a repository in it, for jobs that run in this process; removed with the test. */
export class JobPlace {
  readonly folder: string;
  /** What the observer was told, "warn: …" and "info: …". */
  readonly words: string[] = [];
  readonly #environment: Record<string, string> = {};

  private constructor(folder: string) {
    this.folder = folder;
  }

  static async make(): Promise<JobPlace> {
    const folder = await mkdtemp(join(tmpdir(), "blockhaul-jobs-"));
    onTestFinished(() => rm(folder, { recursive: true, force: true }));
    const place = new JobPlace(folder);
    const store = await openNewStore(place.repository);
    await createRepository(store, {}, AbortSignal.timeout(10_000));
    store.close();
    return place;
  }

  get repository(): string {
    return join(this.folder, "repository");
  }

  /** A file below the folder. */
  path(name: string): string {
    return join(this.folder, name);
  }

  /** Lines that hooks wrote, with `>> $LOG`. */
  async log(): Promise<string[]> {
    const text = await readFile(this.path("log"), "utf8").catch(() => "");
    return text.split("\n").filter((line) => line !== "");
  }

  read(text: string): JobFile {
    const { file, problems } = parseJobFile(text, { ...this.#environment, REPOSITORY: this.repository });
    expect(problems).toEqual([]);
    return file!;
  }

  runner(environment: Readonly<Record<string, string>> = {}): Runner {
    return {
      environment: { PATH: process.env["PATH"], LOG: this.path("log"), ...environment },
      holder: { host: "test", pid: 1 },
      isGone: () => false,
      writer: "test",
      peakRssBytes: () => 0,
      threads: 1,
      cacheDir: this.path("cache"),
    };
  }

  listener(more: Partial<JobListener> = {}): JobListener {
    return {
      warn: (message) => void this.words.push(`warn: ${message}`),
      info: (message) => void this.words.push(`info: ${message}`),
      backup: () => undefined,
      verify: () => undefined,
      source: () => undefined,
      upkeep: () => undefined,
      ...more,
    };
  }

  /** The first job of a file. */
  async run(text: string, options: RunJobOptions = {}): Promise<JobOutcome> {
    const [job] = jobsOf(this.read(text));
    const signal = options.signal ?? new AbortController().signal;
    return await runJob(job!, this.runner(options.environment), {
      signal,
      observer: this.listener(options.listener),
    });
  }
}

export interface RunJobOptions {
  readonly signal?: AbortSignal;
  readonly environment?: Readonly<Record<string, string>>;
  readonly listener?: Partial<JobListener>;
}
