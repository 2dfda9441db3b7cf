import { hash } from "node:crypto";
import { AppError, hasCode } from "../errors.ts";
import { accessOf, jobsOf, withJob, type Job, type OpenJob, type Runner } from "../jobs/job.ts";
import type { JobObserver } from "../jobs/observer.ts";
import { forgetBySource, withRun } from "../jobs/run-source.ts";
import type { JobFile } from "../jobs/schema.ts";
import { runUpkeep } from "../jobs/upkeep.ts";
import { GiB } from "../bytes/size.ts";
import { UPKEEP_STEPS, type UpkeepOrder, type UpkeepOrderStep } from "../queue/orders.ts";
import { Prefix } from "../repository/names.ts";
import { withStore } from "../session/session.ts";
import type { ObjectStore } from "../store/store.ts";
import { scrub } from "../upkeep/scrub.ts";
import { throwIfAny } from "../upkeep/verify-all.ts";
import { isDeadline } from "./deadline.ts";
import { nextSlice } from "./slices.ts";

/** Stored bytes of a scrub's part: a minute or so near the bucket. */
const PART_BYTES = 4 * GiB;

/** What forget and prune change when they come further. */
const MOVING = ["generations", "packs", "layers", "index", "forwards", "condemned", "forgotten"] as const;

/** A step that was done, and did not go well. */
export interface StepFailure {
  readonly step: UpkeepOrderStep;
  readonly error: unknown;
}

export interface SliceResult {
  /** What is left; undefined: nothing. */
  readonly next: UpkeepOrder | undefined;
  /** Steps that failed now. Trying them again would not help. */
  readonly failures: readonly StepFailure[];
}

/**
 * Does as much of a job's upkeep as there is time for. Every step may be stopped anywhere and is made up for by the next
 * slice; a verify goes on with the packs that it has not read, a scrub with its next part.
 *
 * @param signal with the reason E_DEADLINE when time is over.
 * @throws AppError of what may pass (unavailable, locked): the same slice is tried again.
 */
export async function upkeepSlice(
  order: UpkeepOrder,
  file: JobFile,
  runner: Runner,
  { signal, observer }: { readonly signal: AbortSignal; readonly observer: JobObserver },
): Promise<SliceResult> {
  const [job] = jobsOf(file, [order.job]);
  return await new UpkeepSlice(order, job!, runner, signal, observer).work();
}

class UpkeepSlice {
  readonly #order: UpkeepOrder;
  readonly #job: Job;
  readonly #runner: Runner;
  readonly #signal: AbortSignal;
  readonly #observer: JobObserver;
  readonly #failures: StepFailure[] = [];
  #progressed = false;
  #part = { number: 1, of: 0 };

  constructor(order: UpkeepOrder, job: Job, runner: Runner, signal: AbortSignal, observer: JobObserver) {
    this.#order = order;
    this.#job = job;
    this.#runner = runner;
    this.#signal = signal;
    this.#observer = { ...observer, verify: (done, total) => this.#verified(done, total, observer) };
    if (order.continued?.part !== undefined) this.#part = order.continued.part;
  }

  async work(): Promise<SliceResult> {
    const { continued } = this.#order;
    const steps = this.#order.steps ?? stepsOf(this.#job);
    const left = continued === undefined ? steps : steps.slice(Math.max(steps.indexOf(continued.step), 0));
    for (const step of left) {
      try {
        await this.#step(step, continued?.step === step);
      } catch (error) {
        if (isDeadline(error)) return this.#result(step);
        if (error instanceof AppError && ["unavailable", "locked"].includes(error.kind)) throw error;
        this.#failures.push({ step, error });
      }
      this.#progressed = true;
    }
    return this.#result(undefined);
  }

  #result(step: UpkeepOrderStep | undefined): SliceResult {
    const failures = this.#failures;
    if (step === undefined) return { next: undefined, failures };
    const before = this.#order.continued;
    const failed = [...new Set([...(before?.failed ?? []), ...failures.map((one) => one.step)])];
    const part = step === "scrub" && this.#part.of > 0 ? { part: this.#part } : {};
    const continued = { ...nextSlice(before, this.#progressed), step, failed, ...part };
    return { next: { ...this.#order, continued }, failures };
  }

  async #step(step: UpkeepOrderStep, again: boolean): Promise<void> {
    if (step === "scrub") {
      await withStore(accessOf(this.#job, this.#runner), (store) => this.#scrub(store));
      return;
    }
    await withJob(this.#job, this.#runner, this.#signal, async (job) => {
      const { store } = job.session.repository;
      const before = step === "verify" ? "" : await standOf(store, this.#signal);
      try {
        await this.#openStep(step, job, again);
      } catch (error) {
        if (step !== "verify" && isDeadline(error)) {
          this.#progressed ||= (await standOf(store, AbortSignal.timeout(10_000))) !== before;
        }
        throw error;
      }
    });
  }

  async #openStep(step: Exclude<UpkeepOrderStep, "scrub">, job: OpenJob, again: boolean): Promise<void> {
    const options = { signal: this.#signal, observer: this.#observer };
    if (step === "forget") {
      for (const source of job.entry.sources) await this.#forget(source, job);
      return;
    }
    const outcome = await runUpkeep(job, step, { ...options, continued: again });
    if (outcome.error !== undefined) throw outcome.error as Error;
  }

  /** One source that cannot be looked at does not keep the others. */
  async #forget(source: string, job: OpenJob): Promise<void> {
    try {
      await withRun(job, this.#signal, (run) => forgetBySource(job, source, this.#observer, run));
    } catch (error) {
      if (hasCode(error, "E_NO_SOURCE")) return; // it has no generation yet
      if (!(error instanceof AppError) || error.kind !== "corrupt") throw error;
      this.#failures.push({ step: "forget", error });
    }
  }

  async #scrub(store: ObjectStore): Promise<void> {
    if (this.#part.of === 0) this.#part = { number: 1, of: await partsOf(store, this.#signal) };
    for (
      ;
      this.#part.number <= this.#part.of;
      this.#part = { ...this.#part, number: this.#part.number + 1 }
    ) {
      const request = { part: this.#part, packsOnly: this.#part.number > 1, progress: () => undefined };
      const report = await withRun({ spent: this.#signal }, this.#signal, (run) =>
        scrub(store, request, run),
      );
      this.#progressed = true;
      try {
        throwIfAny(report, store.location);
      } catch (error) {
        for (const { message } of report.problems) this.#observer.warn(message);
        this.#failures.push({ step: "scrub", error });
      }
    }
  }

  #verified(done: number, total: number, observer: JobObserver): void {
    if (done > 0) this.#progressed = true;
    observer.verify(done, total);
  }
}

/** What a job says is to be done. Scrub is for whoever asks for it. */
export function stepsOf({ entry }: Job): UpkeepOrderStep[] {
  const has = { forget: entry.retention, prune: entry.prune, verify: entry.verify, scrub: undefined };
  return UPKEEP_STEPS.filter((step) => has[step] !== undefined);
}

async function partsOf(store: ObjectStore, signal: AbortSignal): Promise<number> {
  let bytes = 0;
  for await (const { size } of store.list(Prefix.packs, signal)) bytes += size;
  return Math.max(1, Math.ceil(bytes / PART_BYTES));
}

/** By LIST: what has changed shows. */
async function standOf(store: ObjectStore, signal: AbortSignal): Promise<string> {
  const counts: (number | string)[] = [];
  for (const kind of MOVING) {
    let last = "";
    let count = 0;
    for await (const { key } of store.list(Prefix[kind], signal)) {
      last = key;
      count++;
    }
    counts.push(count, last);
  }
  return hash("sha256", JSON.stringify(counts));
}
