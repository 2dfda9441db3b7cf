import { AppError, messageOf } from "../errors.ts";
import type { JobObserver } from "../jobs/observer.ts";
import type { LambdaContext } from "./edge.ts";

type Level = "INFO" | "WARN" | "ERROR";
type Fields = Readonly<Record<string, unknown>>;

/** One JSON document a line on stdout, which CloudWatch Logs takes as it is. */
export class Log {
  readonly #common: Fields;

  constructor(context: LambdaContext, fields: Fields = {}) {
    this.#common = { requestId: context.awsRequestId, function: context.functionName, ...fields };
  }

  info(message: string, fields: Fields = {}): void {
    this.#write("INFO", message, fields);
  }

  warn(message: string, fields: Fields = {}): void {
    this.#write("WARN", message, fields);
  }

  /** What went wrong, with its code and its facts. */
  error(error: unknown, fields: Fields = {}): void {
    const known =
      error instanceof AppError ? { code: error.code, kind: error.kind, context: error.context } : {};
    const stack = error instanceof AppError || !(error instanceof Error) ? {} : { stack: error.stack };
    this.#write("ERROR", messageOf(error), { ...known, ...stack, ...fields });
  }

  #write(level: Level, message: string, fields: Fields): void {
    writeLine({ timestamp: new Date().toISOString(), level, message, ...this.#common, ...fields });
  }
}

/** Past `console`, which Lambda's runtime would wrap. */
export function writeLine(document: Fields): void {
  process.stdout.write(`${JSON.stringify(document)}\n`);
}

/** Of jobs only words are of interest here. */
export function logObserver(log: Log, more: Partial<JobObserver> = {}): JobObserver {
  return {
    warn: (message) => log.warn(message),
    info: (message) => log.info(message),
    backup: () => undefined,
    verify: () => undefined,
    ...more,
  };
}
