import { KiB, parseSize } from "../bytes/size.ts";
import { AppError } from "../errors.ts";
import { RateLimit } from "../flow/rate-limit.ts";

/** Below it the requests that are in flight together would each stand still for longer than servers wait. */
const RATE_MIN = 64 * KiB;

/** What may be asked of a store, in numbers. */
export interface AllowanceWish {
  /** Bytes a second that go there, and that come from there. */
  readonly upload?: number | undefined;
  readonly download?: number | undefined;
  /** Requests in all. */
  readonly requests?: number | undefined;
}

/** What may be asked of a store, kept by whoever talks to it; one may stand for several stores. */
export interface Allowance {
  readonly upload?: RateLimit | undefined;
  readonly download?: RateLimit | undefined;
  readonly requests?: RequestBudget | undefined;
}

/** Undefined when nothing is wished for. */
export function makeAllowance({ upload, download, requests }: AllowanceWish): Allowance | undefined {
  if (upload === undefined && download === undefined && requests === undefined) return undefined;
  return {
    upload: upload === undefined ? undefined : new RateLimit(upload),
    download: download === undefined ? undefined : new RateLimit(download),
    requests: requests === undefined ? undefined : new RequestBudget(requests),
  };
}

/**
 * A number of requests that may be sent.
 *
 * When one more is wanted, `spent` is aborted, which ends the runs that go by it. What they send to put things in order goes by
 * signals of its own, and through: the lease, the index of what is stored, the record of the run's end.
 */
export class RequestBudget {
  readonly #max: number;
  readonly #controller = new AbortController();
  #sent = 0;

  constructor(max: number) {
    this.#max = max;
  }

  /** Aborted with AppError E_REQUESTS_SPENT (full). */
  get spent(): AbortSignal {
    return this.#controller.signal;
  }

  /** Before each request. @param signal of the request. @throws its reason, when it goes by `spent` and that is over. */
  spend(signal: AbortSignal): void {
    this.#sent++;
    if (this.#sent <= this.#max) return;
    const message = `The ${this.#max} requests that were allowed are spent; what a backup has stored until here the next one uses`;
    this.#controller.abort(new AppError("full", "E_REQUESTS_SPENT", message, { max: this.#max }));
    signal.throwIfAborted();
  }
}

/** Bytes a second, as `--limit-upload` and `--limit-download` take them. @throws AppError E_SIZE, E_RATE (usage). */
export function parseRate(value: string): number {
  const rate = parseSize(value);
  if (rate >= RATE_MIN) return rate;
  const message = `Too slow: ${value} a second; at least 64KiB, or requests would run into the time limits of servers`;
  throw new AppError("usage", "E_RATE", message);
}
