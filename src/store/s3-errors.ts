import { AppError, messageOf, systemCode, type ErrorCode, type ErrorKind } from "../errors.ts";

/** What was asked of the server, for messages. */
export interface S3Request {
  readonly location: string;
  readonly bucket: string;
  /** S3's name: "PutObject". */
  readonly operation: string;
  /** Relative to the repository's prefix; undefined for requests about the bucket. */
  readonly key: string | undefined;
}

interface Meaning {
  readonly kind: ErrorKind;
  readonly code: ErrorCode;
  readonly advice: string;
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
const CLOCK_NAMES: readonly string[] = ["RequestTimeTooSkewed", "RequestExpired"];
const NO_CREDENTIALS: readonly string[] = ["CredentialsProviderError", "TokenProviderError", "ProviderError"];
/** Node's codes for a certificate that is not trusted (tls documentation, "X509 certificate error codes"). */
const TLS = /^(?:ERR_TLS_|ERR_SSL_|CERT_|DEPTH_ZERO_|SELF_SIGNED_|UNABLE_TO_|HOSTNAME_MISMATCH$|EPROTO$)/;
const NETWORK = /^(?:E[A-Z]+|UND_ERR_[A-Z_]+)$/;

interface Facts {
  readonly name: string;
  readonly status: number | undefined;
  readonly headers: Readonly<Record<string, string | undefined>>;
  readonly fields: Readonly<Record<string, unknown>>;
}

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
  const code = systemCode(error) ?? "";
  const fail = (kind: ErrorKind, appCode: ErrorCode, what: string): AppError => {
    const object = request.key === undefined ? "" : ` of ${request.key}`;
    const context = { ...request, status: facts.status, s3: facts.name, system: code || undefined };
    return new AppError(
      kind,
      appCode,
      `${request.location}: ${request.operation}${object}: ${what}`,
      context,
      error,
    );
  };
  const answer = facts.status === undefined ? messageOf(error) : `${facts.name} (HTTP ${facts.status})`;
  if (facts.status === undefined) {
    const local = localMeaning(facts.name, code, messageOf(error));
    return fail(local.kind, local.code, `${answer}; ${local.advice}`);
  }
  if (isWrongRegion(facts)) return fail("usage", "E_REGION", `${answer}; ${regionAdvice(facts)}`);
  if (CLOCK_NAMES.includes(facts.name))
    return fail("credentials", "E_CLOCK", `${answer}; ${clockAdvice(facts)}`);
  // the answer to a HEAD has no body, and so no name: it may be RequestTimeout, which passes
  const unnamed = facts.status === 400 && facts.name === "Unknown";
  const meaning = unnamed ? TRY_AGAIN : (BY_NAME[facts.name] ?? byStatus(facts.status));
  return fail(meaning.kind, meaning.code, `${answer}; ${meaning.advice}`);
}

/** Errors that no server sent: of the network, of TLS, and of the SDK before it sends anything. */
function localMeaning(name: string, code: string, message: string): Meaning {
  if (NO_CREDENTIALS.includes(name)) {
    const advice =
      "no usable credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run with a role";
    return { kind: "credentials", code: "E_CREDENTIALS", advice };
  }
  if (/region is missing|invalid hostname component/i.test(message)) {
    const advice = "say which region: ?region=… in the location, AWS_REGION or the profile";
    return { kind: "usage", code: "E_REGION", advice };
  }
  if (TLS.test(code)) {
    const advice =
      "the server's certificate is not trusted, or it does not speak TLS; for an authority of your own set " +
      "NODE_EXTRA_CA_CERTS=/path/to/ca.pem, and check the endpoint's scheme and host name";
    return { kind: "usage", code: "E_TLS", advice };
  }
  if (code === "ENOTFOUND" || code === "ECONNREFUSED" || code === "EAI_AGAIN") {
    return { kind: "unavailable", code: "E_STORE", advice: "nobody answers there; check the endpoint" };
  }
  if (code === "EPIPE") {
    const advice =
      "the server closed the connection while it was sent data; some do that when a quota is used up";
    return { kind: "unavailable", code: "E_STORE", advice };
  }
  if (NETWORK.test(code) || name === "TimeoutError") return TRY_AGAIN;
  return { kind: "bug", code: "E_STORE_BUG", advice: "the request could not be made" };
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

function clockAdvice(facts: Facts): string {
  const theirs = Date.parse(facts.headers["date"] ?? String(facts.fields["ServerTime"]));
  if (Number.isNaN(theirs)) return "this machine's clock is wrong; set it";
  const seconds = Math.round((Date.now() - theirs) / 1000);
  const [amount, unit] = Math.abs(seconds) < 120 ? [seconds, "s"] : [Math.round(seconds / 60), "min"];
  return `this machine's clock is ${Math.abs(amount)} ${unit} ${amount < 0 ? "behind" : "ahead of"} the server's; set it`;
}

/** The SDK's errors carry what they know in several places, none of them typed. */
function factsOf(error: unknown): Facts {
  if (!(error instanceof Error)) return { name: "", status: undefined, headers: {}, fields: {} };
  const fields = error as unknown as Record<string, unknown>;
  const metadata = fields["$metadata"] as { httpStatusCode?: number } | undefined;
  const response = fields["$response"] as
    { statusCode?: number; headers?: Record<string, string> } | undefined;
  const status = metadata?.httpStatusCode ?? response?.statusCode;
  return { name: error.name, status, headers: response?.headers ?? {}, fields };
}
