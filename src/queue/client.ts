import http from "node:http";
import https from "node:https";
import { NodeHttpHandler } from "@smithy/node-http-handler";
import { retry, type RetryPolicy } from "../flow/retry.ts";
import { queueError } from "./errors.ts";

/** Longer than a long poll lasts. */
const IDLE_TIMEOUT_MS = 40_000;
const CONNECT_TIMEOUT_MS = 5000;

/** A message that is not handled in time comes again, so nobody waits long for a service that is away. */
const POLICY: RetryPolicy = { attemptsMax: 6, baseMs: 200, waitMaxMs: 5000, budgetMs: 30_000 };

const nothing = (): void => {};
const SILENT = { trace: nothing, debug: nothing, info: nothing, warn: nothing, error: nothing };

/**
 * Settings of a client of the AWS SDK, as for the store: agents as instances, no retries of its own, no words to the console.
 * Endpoint, region and credentials come from the SDK's own chain (`AWS_ENDPOINT_URL_SQS`, `AWS_REGION`, …); where that
 * says no region, the one in the place's own name is taken.
 *
 * @param place URL of a queue, or ARN of a topic.
 */
export function clientSettings(place: string, environment: Environment): ClientSettings {
  const region = environment["AWS_REGION"] ?? environment["AWS_DEFAULT_REGION"] ?? regionOf(place);
  return {
    ...(region === undefined ? {} : { region }),
    maxAttempts: 1,
    logger: SILENT,
    requestHandler: new NodeHttpHandler({
      httpAgent: new http.Agent({ keepAlive: true }),
      httpsAgent: new https.Agent({ keepAlive: true }),
      connectionTimeout: CONNECT_TIMEOUT_MS,
      socketTimeout: IDLE_TIMEOUT_MS,
      logger: SILENT,
    }),
  };
}

type Environment = Readonly<Record<string, string | undefined>>;

interface ClientSettings {
  readonly region?: string;
  readonly maxAttempts: number;
  readonly logger: typeof SILENT;
  readonly requestHandler: NodeHttpHandler;
}

function regionOf(place: string): string | undefined {
  return /^arn:[^:]*:[^:]*:([a-z0-9-]+):|\/\/sqs\.([a-z0-9-]+)\./.exec(place)?.slice(1).find(Boolean);
}

/** Sends until it succeeds, or is not worth another try. @throws AppError as `queueError`; the signal's reason. */
export async function sending<T>(
  place: string,
  operation: string,
  signal: AbortSignal,
  send: () => Promise<T>,
): Promise<T> {
  return await retry(POLICY, signal, async () => {
    signal.throwIfAborted();
    try {
      return await send();
    } catch (error) {
      signal.throwIfAborted();
      throw queueError(error, place, operation);
    }
  });
}
