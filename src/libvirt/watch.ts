import { formatSize, MiB } from "../bytes/size.ts";
import { AppError, messageOf } from "../errors.ts";
import { pause } from "../flow/retry.ts";
import { freeIn } from "../qemu/scratch.ts";
import type { DomainHandle } from "./domain.ts";
import { backupJob, jobFacts } from "./jobs.ts";
import { tokenOfSocket } from "./names.ts";

/** How often is looked, milliseconds. */
const LOOK_MS = 1000;

/**
 * How long libvirt may go on listing a job that somebody has ended, milliseconds; 20 in most cases. QEMU does not keep
 * the instant from the beginning of that time on.
 */
const ENDING_MS = 250;

/** Free bytes of the scratch folder below which a backup that could take more ends: at none the guest would be stopped. */
const FREE_MIN = 64 * MiB;

export interface Watched {
  readonly token: string;
  readonly scratchDir: string;
  /** Bytes that the scratch may take; undefined: as much as there is. */
  readonly scratchMax: number | undefined;
  /** Bytes that it could come to take. */
  readonly scratchNeed: number;
}

/**
 * Looks now and then for what ends a point in time before its time: libvirt tells nothing by itself. Above all for scratch
 * that runs full, because QEMU then fails the guest's writes.
 */
export class DomainWatch {
  /** AppError E_POINT_IN_TIME_LOST (source), as soon as it is. Never resolves. */
  readonly lost: Promise<never>;
  readonly #domain: DomainHandle;
  readonly #watched: Watched;
  readonly #end = new AbortController();
  readonly #reject: (reason: AppError) => void;
  readonly #over: Promise<void>;
  #failure: AppError | undefined;

  constructor(domain: DomainHandle, watched: Watched) {
    const { promise, reject } = Promise.withResolvers<never>();
    this.lost = promise;
    this.lost.catch(() => undefined); // whoever waits hears it
    this.#reject = reject;
    this.#domain = domain;
    this.#watched = watched;
    this.#over = this.#follow();
  }

  /** Whether the instant was held until now. @throws AppError E_POINT_IN_TIME_LOST (source); the signal's reason. */
  async check(signal: AbortSignal): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure;
    await pause(ENDING_MS, signal);
    const why = await this.#whyLost(signal).catch((error: unknown) => {
      signal.throwIfAborted();
      return messageOf(error); // who does not answer does not vouch for anything
    });
    if (why !== undefined) throw this.#lose(why);
  }

  /** Safe to call twice. */
  async close(): Promise<void> {
    this.#end.abort();
    await this.#over;
  }

  async #follow(): Promise<void> {
    const { signal } = this.#end;
    try {
      for (;;) {
        await pause(LOOK_MS, signal);
        const why = await this.#whyLost(signal).catch(() => undefined); // libvirt may be starting anew: QEMU goes on
        if (why === undefined) continue;
        this.#lose(why);
        return;
      }
    } catch {
      // closed
    }
  }

  async #whyLost(signal: AbortSignal): Promise<string | undefined> {
    const { token, scratchDir, scratchMax, scratchNeed } = this.#watched;
    const [job, { state, why }, { scratchUsed }, free] = await Promise.all([
      backupJob(this.#domain, signal),
      this.#domain.state(signal),
      jobFacts(this.#domain, signal),
      freeIn(scratchDir),
    ]);
    if (job?.socket === undefined || tokenOfSocket(job.socket) !== token) {
      return "libvirt's backup job has ended: the domain was shut down, or the job aborted by another hand";
    }
    if (state === "paused" && why === "I/O error") {
      return `an I/O error stopped the guest; is the scratch folder ${scratchDir} full?`;
    }
    if (scratchMax !== undefined && scratchUsed > scratchMax) {
      return `the scratch space is used up (${formatSize(scratchUsed)}); give it more with --scratch-size`;
    }
    return free >= Math.min(FREE_MIN, (scratchMax ?? scratchNeed) - scratchUsed)
      ? undefined
      : `the scratch folder ${scratchDir} is nearly full (${formatSize(free)} free); choose another with --scratch`;
  }

  #lose(why: string): AppError {
    this.#failure ??= new AppError("source", "E_POINT_IN_TIME_LOST", `The point in time is lost: ${why}`);
    this.#reject(this.#failure);
    return this.#failure;
  }
}
