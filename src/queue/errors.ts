import { AppError, messageOf, systemCode, type ErrorCode, type ErrorKind } from "../errors.ts";

interface Meaning {
  readonly kind: ErrorKind;
  readonly code: ErrorCode;
  readonly advice: string;
}

const NO_CREDENTIALS: Meaning = {
  kind: "credentials",
  code: "E_CREDENTIALS",
  advice:
    "no usable credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run with a role",
};
const DENIED: Meaning = {
  kind: "credentials",
  code: "E_QUEUE_ACCESS",
  advice: "these credentials may not do that here; check the policy",
};
const GONE: Meaning = {
  kind: "notFound",
  code: "E_NO_QUEUE",
  advice: "there is no such queue or topic; check its name, region and account",
};
const NOT_OURS: Meaning = {
  kind: "locked",
  code: "E_MESSAGE_LOST",
  advice: "the message is not ours any more: it was shown to another, or is gone",
};
const TRY_AGAIN: Meaning = {
  kind: "unavailable",
  code: "E_QUEUE",
  advice: "the service does not answer now",
};
const REFUSED: Meaning = {
  kind: "usage",
  code: "E_QUEUE_REFUSED",
  advice: "the service refuses the request",
};

/** By the services' error codes ("Common errors" of the SQS and SNS API references), old spellings too. */
const BY_NAME: Readonly<Record<string, Meaning>> = {
  CredentialsProviderError: NO_CREDENTIALS,
  TokenProviderError: NO_CREDENTIALS,
  ProviderError: NO_CREDENTIALS,
  InvalidClientTokenId: NO_CREDENTIALS,
  UnrecognizedClientException: NO_CREDENTIALS,
  SignatureDoesNotMatch: NO_CREDENTIALS,
  ExpiredToken: NO_CREDENTIALS,
  ExpiredTokenException: NO_CREDENTIALS,
  InvalidSecurity: NO_CREDENTIALS,
  AccessDenied: DENIED,
  AccessDeniedException: DENIED,
  AuthorizationError: DENIED,
  AuthorizationErrorException: DENIED,
  KmsAccessDenied: DENIED,
  QueueDoesNotExist: GONE,
  "AWS.SimpleQueueService.NonExistentQueue": GONE,
  QueueDeletedRecently: GONE,
  InvalidAddress: GONE,
  NotFound: GONE,
  NotFoundException: GONE,
  ReceiptHandleIsInvalid: NOT_OURS,
  MessageNotInflight: NOT_OURS,
  RequestThrottled: TRY_AGAIN,
  ThrottlingException: TRY_AGAIN,
  Throttled: TRY_AGAIN,
  ThrottledException: TRY_AGAIN,
  OverLimit: TRY_AGAIN,
  InternalError: TRY_AGAIN,
  InternalErrorException: TRY_AGAIN,
  ServiceUnavailable: TRY_AGAIN,
  TimeoutError: TRY_AGAIN,
};

/**
 * What a failed request to a queue or topic means; an AppError comes back as it is.
 *
 * @param place queue URL or topic ARN. @param operation "ReceiveMessage".
 */
export function queueError(error: unknown, place: string, operation: string): AppError {
  if (error instanceof AppError) return error;
  const name = error instanceof Error ? error.name : "";
  const status = statusOf(error);
  const { kind, code, advice } = meaningOf(error, name, status);
  const answer = status === undefined ? messageOf(error) : `${name}: ${messageOf(error)} (HTTP ${status})`;
  const context = { place, operation, status, aws: name, system: systemCode(error) };
  return new AppError(kind, code, `${place}: ${operation}: ${answer}; ${advice}`, context, error);
}

function meaningOf(error: unknown, name: string, status: number | undefined): Meaning {
  const known = BY_NAME[name];
  if (known !== undefined) return known;
  if (name === "InvalidParameterValue" || name === "InvalidParameterValueException") {
    return /receipt/i.test(messageOf(error)) ? NOT_OURS : REFUSED; // so is one that has expired
  }
  if (/region is missing/i.test(messageOf(error))) {
    return { kind: "usage", code: "E_REGION", advice: "say which region: AWS_REGION or the profile" };
  }
  if (status === undefined) {
    return /^E[A-Z]+$/.test(systemCode(error) ?? "") || name === "AggregateError" ? TRY_AGAIN : REFUSED;
  }
  if (status === 401 || status === 403) return DENIED;
  return status >= 500 || status === 429 || status < 300 ? TRY_AGAIN : REFUSED;
}

function statusOf(error: unknown): number | undefined {
  if (!(error instanceof Error)) return undefined;
  const { $metadata: metadata } = error as { $metadata?: { httpStatusCode?: number } };
  return metadata?.httpStatusCode;
}
