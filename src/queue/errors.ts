import { clockMeaning, factsOf, localMeaning, type Facts, type Meaning } from "../aws/failure.ts";
import { AppError } from "../errors.ts";

const WRONG_KEYS: Meaning = {
  kind: "credentials",
  code: "E_CREDENTIALS",
  advice: "the access key, the secret key or the session token is wrong or expired",
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
  InvalidClientTokenId: WRONG_KEYS,
  UnrecognizedClientException: WRONG_KEYS,
  SignatureDoesNotMatch: WRONG_KEYS,
  ExpiredToken: WRONG_KEYS,
  ExpiredTokenException: WRONG_KEYS,
  InvalidSecurity: WRONG_KEYS,
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
};

/**
 * What a failed request to a queue or topic means; an AppError comes back as it is.
 *
 * @param place queue URL or topic ARN. @param operation "ReceiveMessage".
 */
export function queueError(error: unknown, place: string, operation: string): AppError {
  if (error instanceof AppError) return error;
  const facts = factsOf(error);
  const { name, status, system } = facts;
  const { kind, code, advice } = meaningOf(facts);
  const answer = status === undefined ? facts.message : `${name}: ${facts.message} (HTTP ${status})`;
  const message = `${place}: ${operation}: ${answer}; ${advice}`;
  return new AppError(kind, code, message, { place, operation, status, aws: name, system }, error);
}

function meaningOf(facts: Facts): Meaning {
  const { name, message, status } = facts;
  if (status === undefined) {
    return localMeaning(facts, TRY_AGAIN, "AWS_REGION or the profile") ?? REFUSED;
  }
  // so is one that has expired
  if (/^InvalidParameterValue(?:Exception)?$/.test(name) && /receipt/i.test(message)) return NOT_OURS;
  return clockMeaning(facts) ?? BY_NAME[name] ?? byStatus(status);
}

function byStatus(status: number): Meaning {
  if (status === 401 || status === 403) return DENIED;
  return status >= 500 || status === 429 || status < 300 ? TRY_AGAIN : REFUSED;
}
