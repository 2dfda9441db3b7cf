import {
  HeadBucketCommand,
  S3Client,
  type $Command,
  type S3ClientResolvedConfig,
  type ServiceInputTypes,
  type ServiceOutputTypes,
} from "@aws-sdk/client-s3";
import { AppError } from "../errors.ts";
import { DEFAULT_RETRY, pause, retry, type RetryPolicy } from "../flow/retry.ts";
import { orAborted } from "./body.ts";
import type { Allowance } from "./allowance.ts";
import type { S3Location } from "./location.ts";
import { DirectGets, type BuiltRequest, type PartialContent } from "./s3-direct-get.ts";
import { createS3Client, type Answer, type S3ClientOptions } from "./s3-client.ts";
import { retryAfterMs, s3Error } from "./s3-errors.ts";

export interface S3Options extends S3ClientOptions {
  /** For requests to a server that has answered before. */
  readonly retry?: RetryPolicy;
}

/** A server that has never answered is more likely a wrong endpoint than an outage: say so within seconds. */
const FIRST_CONTACT: RetryPolicy = { attemptsMax: 4, baseMs: 200, waitMaxMs: 2000, budgetMs: 20_000 };
/** A server may ask for a pause as long as it likes; this is the most we follow. */
const PAUSE_MAX_MS = 30_000;

export type S3Command<In extends ServiceInputTypes, Out extends ServiceOutputTypes> = $Command<
  In,
  Out,
  S3ClientResolvedConfig,
  ServiceInputTypes,
  ServiceOutputTypes
>;

/**
 * One bucket of one server: sends requests, tries again what is worth it, counts every attempt, keeps the server's
 * clock, and turns what goes wrong into AppErrors. The SDK's own retries are off: they cannot be aborted while they
 * wait, and give up within a second when many requests fail together.
 */
export class S3Connection {
  readonly location: string;
  readonly bucket: string;
  readonly prefix: string;
  readonly allowance: Allowance;
  readonly #client: Promise<S3Client>;
  readonly #policy: RetryPolicy;
  readonly #counts = new Map<string, number>();
  readonly #directly: DirectGets;
  #lastGet: BuiltRequest | undefined;
  #clock: { readonly server: number; readonly atMs: number } | undefined;

  constructor(location: S3Location, options: S3Options) {
    this.bucket = location.bucket;
    this.prefix = location.prefix;
    this.location = `s3://${location.bucket}/${location.prefix}`.replace(/\/$/, "");
    this.allowance = options.allowance ?? {};
    this.#policy = options.retry ?? DEFAULT_RETRY;
    this.#client = createS3Client(location, options, {
      sent: (operation, request) => {
        this.#count(operation);
        if (operation === "GetObject") this.#lastGet = request;
      },
      answered: (answer) => this.#keepClock(answer),
    });
    this.#client.catch(() => {}); // every request tells of it
    this.#directly = new DirectGets(this.#client);
  }

  /** The full name of an object in the bucket. */
  name(key: string): string {
    return this.prefix + key;
  }

  /** Sends a request until it succeeds or is not worth another try. */
  async send<In extends ServiceInputTypes, Out extends ServiceOutputTypes>(
    command: S3Command<In, Out>,
    key: string | undefined,
    signal: AbortSignal,
  ): Promise<Out> {
    return this.retrying(signal, () => this.once(command, key, signal));
  }

  /** Sends a request once. @throws AppError, or the signal's reason. */
  async once<In extends ServiceInputTypes, Out extends ServiceOutputTypes>(
    command: S3Command<In, Out>,
    key: string | undefined,
    signal: AbortSignal,
  ): Promise<Out> {
    signal.throwIfAborted();
    this.allowance.requests?.spend(signal);
    try {
      const client = await orAborted(this.#client, signal);
      // the SDK stops a request, but not its search for credentials before it
      return await orAborted(client.send(command, { abortSignal: signal }), signal);
    } catch (error) {
      signal.throwIfAborted();
      const failure = this.failure(error, operationOf(command), key);
      if (failure.retryable) await pause(Math.min(retryAfterMs(error), PAUSE_MAX_MS), signal);
      throw failure;
    }
  }

  /**
   * A ranged GET, sent once, past the SDK where that is possible.
   *
   * @returns undefined when the SDK is to ask. @throws AppError, or the signal's reason.
   */
  async getDirectly(key: string, range: string, signal: AbortSignal): Promise<PartialContent | undefined> {
    signal.throwIfAborted();
    if (!this.#directly.isReady) return undefined;
    this.allowance.requests?.spend(signal);
    try {
      this.#count("GetObject");
      const answer = await orAborted(this.#directly.get(key, range, signal), signal);
      if (answer !== undefined) this.#keepClock(answer);
      return answer;
    } catch (error) {
      signal.throwIfAborted();
      throw this.failure(error, "GetObject", key);
    }
  }

  /** Takes note that a GET of the SDK's has succeeded. */
  learnFrom(key: string): void {
    if (this.#lastGet !== undefined) this.#directly.learn(this.#lastGet, key);
  }

  /** Calls `work` again as long as it fails with something that may pass. */
  async retrying<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    try {
      return await retry(this.#clock === undefined ? FIRST_CONTACT : this.#policy, signal, work);
    } catch (error) {
      signal.throwIfAborted();
      throw error;
    }
  }

  /** The AppError for what went wrong outside of `once`, as in the middle of a body. */
  failure(error: unknown, operation: string, key: string | undefined): AppError {
    return s3Error(error, { location: this.location, bucket: this.bucket, operation, key });
  }

  /** A client like the SDK's whose requests go through `send`, for code that wants one. */
  async clientFor(
    send: <In extends ServiceInputTypes, Out extends ServiceOutputTypes>(
      command: S3Command<In, Out>,
    ) => Promise<Out>,
  ): Promise<S3Client> {
    return Object.create(await this.#client, { send: { value: send } }) as S3Client;
  }

  /** The Date header of the latest answer (one second exact) and what has passed since. */
  async now(signal: AbortSignal): Promise<Date> {
    signal.throwIfAborted();
    if (this.#clock === undefined) {
      await this.send(new HeadBucketCommand({ Bucket: this.bucket }), undefined, signal);
    }
    if (this.#clock === undefined) {
      throw new AppError("usage", "E_UNSUPPORTED", `${this.location}: the server's answers carry no Date`);
    }
    return new Date(this.#clock.server + performance.now() - this.#clock.atMs);
  }

  requests(): Readonly<Record<string, number>> {
    return Object.fromEntries(this.#counts);
  }

  close(): void {
    this.#client.then(
      (client) => client.destroy(),
      () => {},
    );
  }

  #count(operation: string): void {
    this.#counts.set(operation, (this.#counts.get(operation) ?? 0) + 1);
  }

  #keepClock(answer: Answer): void {
    const server = Date.parse(answer.date ?? "");
    if (!Number.isNaN(server)) this.#clock = { server, atMs: performance.now() };
  }
}

/** S3's name of the operation: "PutObject". */
export function operationOf(command: object): string {
  return command.constructor.name.replace(/Command$/, "");
}
