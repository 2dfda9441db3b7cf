import { clockMeaning, factsOf, localMeaning, type Facts, type Meaning } from "../aws/failure.ts";
import { AppError } from "../errors.ts";

/** What was asked of the server, for messages. */
export interface S3Request {
  readonly location: string;
  readonly bucket: string;
  /** S3's name: "PutObject". */
  readonly operation: string;
  /** Relative to the repository's prefix; undefined for requests about the bucket. */
  readonly key: string | undefined;
}

const WRONG_KEYS: Meaning = {
  kind: "credentials",
  code: "E_CREDENTIALS",
  advice:
    "the access key, the secret key or the session token is wrong or expired; check AWS_* and the profile",
};
const DENIED: Meaning = {
  kind: "credentials",
  code: "E_ACCESS",
  advice:
    "these credentials may not do that here; check the policy (a missing object looks the same without s3:ListBucket)",
};
const FULL: Meaning = {
  kind: "full",
  code: "E_STORE_FULL",
  advice: "no space or quota is left; free some or raise it",
};
const NO_BUCKET: Meaning = {
  kind: "notFound",
  code: "E_NO_BUCKET",
  advice: "there is no such bucket; create it, or check its name and the endpoint",
};
const TRY_AGAIN: Meaning = { kind: "unavailable", code: "E_STORE", advice: "the server could not answer" };
const UNSUPPORTED: Meaning = {
  kind: "usage",
  code: "E_UNSUPPORTED",
  advice: "this server does not know the request; use another one, or a newer version of it",
};

const CLOSED: Meaning = {
  kind: "unavailable",
  code: "E_STORE",
  advice: "the server closed the connection while it was sent data; some do that when a quota is used up",
};
const NOT_MADE: Meaning = { kind: "bug", code: "E_STORE_BUG", advice: "the request could not be made" };

/** By S3's error code ("Error responses" of the S3 API reference), with the codes that other servers add. */
const BY_NAME: Readonly<Record<string, Meaning>> = {
  InvalidAccessKeyId: WRONG_KEYS,
  SignatureDoesNotMatch: WRONG_KEYS,
  InvalidToken: WRONG_KEYS,
  ExpiredToken: WRONG_KEYS,
  TokenRefreshRequired: WRONG_KEYS,
  InvalidSecurity: WRONG_KEYS,
  XMinioInvalidAccessKeyId: WRONG_KEYS,
  AccessDenied: DENIED,
  AllAccessDisabled: DENIED,
  AccountProblem: DENIED,
  NotSignedUp: DENIED,
  MethodNotAllowed: DENIED,
  QuotaExceeded: FULL,
  QuotaExceededException: FULL,
  StorageFull: FULL,
  XMinioStorageFull: FULL,
  XMinioAdminBucketQuotaExceeded: FULL,
  InsufficientCapacity: FULL,
  EntityTooLarge: FULL,
  NoSuchBucket: NO_BUCKET,
  InvalidBucketName: NO_BUCKET,
  NotImplemented: UNSUPPORTED,
  NoSuchUpload: {
    kind: "usage",
    code: "E_REFUSED",
    advice: "somebody aborted the upload, perhaps a lifecycle rule of the bucket; run this again",
  },
  SlowDown: TRY_AGAIN,
  SlowDownRead: TRY_AGAIN,
  SlowDownWrite: TRY_AGAIN,
  InternalError: TRY_AGAIN,
  ServiceUnavailable: TRY_AGAIN,
  RequestTimeout: TRY_AGAIN,
  OperationAborted: TRY_AGAIN,
  ConditionalRequestConflict: TRY_AGAIN,
  // the bytes were damaged or cut on the way: they are sent again
  IncompleteBody: TRY_AGAIN,
  BadDigest: TRY_AGAIN,
  XAmzContentSHA256Mismatch: TRY_AGAIN,
  XAmzContentChecksumMismatch: TRY_AGAIN,
  // so were these: some servers read a document before they check its checksum, and we never send such a one
  MalformedXML: TRY_AGAIN,
  InvalidPart: TRY_AGAIN,
  InvalidPartOrder: TRY_AGAIN,
};

const REGION_NAMES: readonly string[] = [
  "PermanentRedirect",
  "TemporaryRedirect",
  "AuthorizationHeaderMalformed",
  "IllegalLocationConstraintException",
  "InvalidRegion",
];

/** S3's code of an error ("NoSuchKey"), or the class of one that arose on our side. */
export function s3ErrorName(error: unknown): string {
  return factsOf(error).name;
}

/** The HTTP status an error came with, if it came from the server at all. */
export function s3ErrorStatus(error: unknown): number | undefined {
  return factsOf(error).status;
}

/** How long the server asks us to stay away, in milliseconds; 0 when it says nothing. */
export function retryAfterMs(error: unknown): number {
  const seconds = Number(factsOf(error).headers["retry-after"]);
  return seconds > 0 ? seconds * 1000 : 0;
}

/** What a failed request means to the user; an AppError comes back as it is. */
export function s3Error(error: unknown, request: S3Request): AppError {
  if (error instanceof AppError) return error;
  const facts = factsOf(error);
  const { name, status } = facts;
  const { kind, code, advice } = meaningOf(facts);
  const object = request.key === undefined ? "" : ` of ${request.key}`;
  const answer = status === undefined ? facts.message : `${name} (HTTP ${status})`;
  const message = `${request.location}: ${request.operation}${object}: ${answer}; ${advice}`;
  return new AppError(kind, code, message, { ...request, status, s3: name, system: facts.system }, error);
}

function meaningOf(facts: Facts): Meaning {
  const { name, status, system } = facts;
  if (status === undefined) {
    if (system === "EPIPE") return CLOSED;
    return localMeaning(facts, TRY_AGAIN, "?region=… in the location, AWS_REGION or the profile") ?? NOT_MADE;
  }
  if (isWrongRegion(facts)) return { kind: "usage", code: "E_REGION", advice: regionAdvice(facts) };
  // the answer to a HEAD has no body, and so no name: it may be RequestTimeout, which passes
  if (status === 400 && name === "Unknown") return TRY_AGAIN;
  return clockMeaning(facts) ?? BY_NAME[name] ?? byStatus(status);
}

function byStatus(status: number): Meaning {
  if (status === 401 || status === 403) return DENIED;
  if (status === 507) return FULL;
  if (status === 501) return UNSUPPORTED;
  // 2xx: an answer that could not be understood, cut or damaged on the way
  if (status >= 500 || status === 408 || status === 429 || status < 300) return TRY_AGAIN;
  return { kind: "usage", code: "E_REFUSED", advice: "the server refuses the request; check the endpoint" };
}

function isWrongRegion(facts: Facts): boolean {
  if (REGION_NAMES.includes(facts.name)) return true;
  return facts.status === 301 || (facts.status === 400 && facts.headers["x-amz-bucket-region"] !== undefined);
}

function regionAdvice(facts: Facts): string {
  const region = facts.headers["x-amz-bucket-region"] ?? facts.fields["Region"];
  if (typeof region === "string" && region !== "") return `the bucket is in ${region}: add ?region=${region}`;
  const endpoint = facts.fields["Endpoint"];
  const other = typeof endpoint === "string" ? `; the server names the endpoint ${endpoint}` : "";
  return `the bucket is in another region${other}`;
}
