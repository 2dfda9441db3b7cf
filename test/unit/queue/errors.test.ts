import { expect, test } from "vitest";
import { AppError } from "../../../src/errors.ts";
import { queueError } from "../../../src/queue/errors.ts";

interface Answer {
  readonly status?: number;
  readonly system?: string;
  readonly date?: string;
}

/** As the SDK throws it. */
function thrown(name: string, message: string, { status, system, date }: Answer = {}): Error {
  return Object.assign(new Error(message), {
    name,
    ...(system !== undefined && { code: system }),
    ...(status !== undefined && { $metadata: { httpStatusCode: status } }),
    ...(date !== undefined && { $response: { statusCode: status, headers: { date } } }),
  });
}

test.each<[string, Error, AppError["kind"], string, RegExp]>([
  ["no keys", thrown("CredentialsProviderError", "none"), "credentials", "E_CREDENTIALS", /AWS_PROFILE/],
  [
    "wrong keys",
    thrown("InvalidClientTokenId", "no", { status: 403 }),
    "credentials",
    "E_CREDENTIALS",
    /expired/,
  ],
  ["no right", thrown("AccessDenied", "no", { status: 403 }), "credentials", "E_QUEUE_ACCESS", /policy/],
  ["an unknown refusal", thrown("Other", "no", { status: 403 }), "credentials", "E_QUEUE_ACCESS", /policy/],
  ["no region", thrown("Error", "Region is missing"), "usage", "E_REGION", /AWS_REGION/],
  [
    "a certificate",
    thrown("Error", "expired", { system: "CERT_HAS_EXPIRED" }),
    "usage",
    "E_TLS",
    /NODE_EXTRA_CA_CERTS/,
  ],
  [
    "nobody",
    thrown("Error", "refused", { system: "ECONNREFUSED" }),
    "unavailable",
    "E_QUEUE",
    /nobody answers there/,
  ],
  [
    "a cut connection",
    thrown("Error", "reset", { system: "ECONNRESET" }),
    "unavailable",
    "E_QUEUE",
    /does not answer/,
  ],
  ["silence", thrown("TimeoutError", "timed out"), "unavailable", "E_QUEUE", /does not answer/],
  [
    "a throttle",
    thrown("ThrottlingException", "slow", { status: 400 }),
    "unavailable",
    "E_QUEUE",
    /does not answer/,
  ],
  ["trouble there", thrown("Other", "oops", { status: 503 }), "unavailable", "E_QUEUE", /does not answer/],
  [
    "no queue",
    thrown("QueueDoesNotExist", "no", { status: 400 }),
    "notFound",
    "E_NO_QUEUE",
    /check its name/,
  ],
  [
    "an old receipt",
    thrown("InvalidParameterValue", "The receipt handle has expired", { status: 400 }),
    "locked",
    "E_MESSAGE_LOST",
    /not ours/,
  ],
  [
    "another value",
    thrown("InvalidParameterValue", "no", { status: 400 }),
    "usage",
    "E_QUEUE_REFUSED",
    /refuses/,
  ],
  [
    "our clock",
    thrown("SignatureDoesNotMatch", "Signature expired: 1 is now earlier than 2", {
      status: 403,
      date: new Date(Date.now() + 3_600_000).toUTCString(),
    }),
    "credentials",
    "E_CLOCK",
    /60 min behind the server's; set it/,
  ],
  [
    "our clock, and no word of theirs",
    thrown("SignatureDoesNotMatch", "Signature not yet current: 2 is still later than 1", { status: 403 }),
    "credentials",
    "E_CLOCK",
    /clock is wrong; set it/,
  ],
])("%s", (_, error, kind, code, advice) => {
  const told = queueError(error, "https://sqs.example/1/work", "ReceiveMessage");
  expect(told).toMatchObject({ kind, code, cause: error });
  expect(told.message).toMatch(/^https:\/\/sqs\.example\/1\/work: ReceiveMessage: .*; /);
  expect(told.message).toMatch(advice);
});

test("what is told already is told as it is", () => {
  const error = new AppError("cancelled", "E_DEADLINE", "over");
  expect(queueError(error, "x", "y")).toBe(error);
});
