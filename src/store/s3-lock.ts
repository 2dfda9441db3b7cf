import { GetObjectLockConfigurationCommand, PutObjectRetentionCommand } from "@aws-sdk/client-s3";
import { AppError } from "../errors.ts";
import type { LockRule } from "./object-lock.ts";
import { noObject } from "./object-errors.ts";
import type { S3Connection } from "./s3-connection.ts";
import { s3ErrorName, s3ErrorStatus } from "./s3-errors.ts";
import type { LockMode, Retention } from "./store.ts";

const DAY_MS = 86_400_000;

/** What a write says of the lock on its object. */
export interface LockHeaders {
  readonly ObjectLockMode?: "GOVERNANCE" | "COMPLIANCE";
  readonly ObjectLockRetainUntilDate?: Date;
}

/** Object Lock of one bucket. */
export class S3Lock {
  readonly #connection: S3Connection;
  readonly #rule: LockRule;

  constructor(connection: S3Connection, rule: LockRule = () => undefined) {
    this.#connection = connection;
    this.#rule = rule;
  }

  /** For the request that creates the object. */
  async headers(key: string, signal: AbortSignal): Promise<LockHeaders> {
    const rule = this.#rule(key);
    if (rule === undefined) return {};
    const now = await this.#connection.now(signal);
    return {
      ObjectLockMode: stored(rule.mode),
      ObjectLockRetainUntilDate: new Date(now.getTime() + rule.days * DAY_MS),
    };
  }

  /** @throws AppError E_NO_OBJECT_LOCK (usage). */
  async check(signal: AbortSignal): Promise<void> {
    const { bucket, location } = this.#connection;
    let enabled: string | undefined;
    try {
      const command = new GetObjectLockConfigurationCommand({ Bucket: bucket });
      enabled = (await this.#connection.send(command, undefined, signal)).ObjectLockConfiguration
        ?.ObjectLockEnabled;
    } catch (error) {
      if (!isWithoutLock(error)) throw error;
    }
    if (enabled === "Enabled") return;
    throw new AppError(
      "usage",
      "E_NO_OBJECT_LOCK",
      `The bucket ${bucket} has no Object Lock: it is chosen when a bucket is made (aws s3api create-bucket ` +
        "--object-lock-enabled-for-bucket); use another bucket, or leave --object-lock out",
      { location },
    );
  }

  async extend(key: string, { mode, until }: Retention, signal: AbortSignal): Promise<void> {
    const Retention = { Mode: stored(mode), RetainUntilDate: until };
    const { bucket: Bucket } = this.#connection;
    const command = new PutObjectRetentionCommand({ Bucket, Key: this.#connection.name(key), Retention });
    try {
      await this.#connection.send(command, key, signal);
    } catch (error) {
      if (!(error instanceof AppError) || s3ErrorStatus(error.cause) !== 404) throw error;
      throw noObject(this.#connection.location, key, error);
    }
  }
}

function stored(mode: LockMode): "GOVERNANCE" | "COMPLIANCE" {
  return mode === "governance" ? "GOVERNANCE" : "COMPLIANCE";
}

/** The bucket is there, without a lock; or the server knows of none. */
function isWithoutLock(error: unknown): boolean {
  if (!(error instanceof AppError)) return false;
  const name = s3ErrorName(error.cause);
  return name === "ObjectLockConfigurationNotFoundError" || s3ErrorStatus(error.cause) === 501;
}
