import { messageOf, systemCode, type ErrorCode, type ErrorKind } from "../errors.ts";

/** What a failed request means to the user. */
export interface Meaning {
  readonly kind: ErrorKind;
  readonly code: ErrorCode;
  readonly advice: string;
}

/** What is known of a failed request. */
export interface Facts {
  /** The service's code of it ("NoSuchKey"), or the class of an error that arose on our side. */
  readonly name: string;
  readonly message: string;
  /** Of HTTP; undefined: no server sent it. */
  readonly status: number | undefined;
  /** Of the operating system, or of TLS; undefined for most. */
  readonly system: string | undefined;
  readonly headers: Readonly<Record<string, string | undefined>>;
  readonly fields: Readonly<Record<string, unknown>>;
}

/** The SDK's errors carry what they know in several places, none of them typed. */
export function factsOf(error: unknown): Facts {
  const common = { message: messageOf(error), system: systemCode(error) };
  if (!(error instanceof Error)) return { name: "", status: undefined, headers: {}, fields: {}, ...common };
  const fields = error as unknown as Record<string, unknown>;
  const metadata = fields["$metadata"] as { httpStatusCode?: number } | undefined;
  const response = fields["$response"] as
    { statusCode?: number; headers?: Record<string, string> } | undefined;
  const status = metadata?.httpStatusCode ?? response?.statusCode;
  return { name: error.name, status, headers: response?.headers ?? {}, fields, ...common };
}

const NO_CREDENTIALS: readonly string[] = ["CredentialsProviderError", "TokenProviderError", "ProviderError"];
/** Node's codes for a certificate that is not trusted (tls documentation, "X509 certificate error codes"). */
const TLS = /^(?:ERR_TLS_|ERR_SSL_|CERT_|DEPTH_ZERO_|SELF_SIGNED_|UNABLE_TO_|HOSTNAME_MISMATCH$|EPROTO$)/;
const NETWORK = /^(?:E[A-Z]+|UND_ERR_[A-Z_]+)$/;

/**
 * What an error means that no server sent: of the network, of TLS, and of the SDK before it sends anything.
 *
 * @param away of a server that may answer later. @param region how to say which one.
 * @returns undefined when it is none of these.
 */
export function localMeaning(
  { name, message, system = "" }: Facts,
  away: Meaning,
  region: string,
): Meaning | undefined {
  if (NO_CREDENTIALS.includes(name)) {
    const advice =
      "no usable credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run with a role";
    return { kind: "credentials", code: "E_CREDENTIALS", advice };
  }
  if (/region is missing|invalid hostname component/i.test(message)) {
    return { kind: "usage", code: "E_REGION", advice: `say which region: ${region}` };
  }
  if (TLS.test(system)) {
    const advice =
      "the server's certificate is not trusted, or it does not speak TLS; for an authority of your own set " +
      "NODE_EXTRA_CA_CERTS=/path/to/ca.pem, and check the endpoint's scheme and host name";
    return { kind: "usage", code: "E_TLS", advice };
  }
  if (system === "ENOTFOUND" || system === "ECONNREFUSED" || system === "EAI_AGAIN") {
    return { ...away, advice: "nobody answers there; check the endpoint" };
  }
  return NETWORK.test(system) || name === "TimeoutError" ? away : undefined;
}

const CLOCK_NAMES: readonly string[] = ["RequestTimeTooSkewed", "RequestExpired"];

/** What a refusal means that comes of our clock; undefined when it does not. */
export function clockMeaning({ name, message, headers, fields }: Facts): Meaning | undefined {
  // services other than S3 say so only in words (Signature Version 4, "Troubleshooting")
  if (!CLOCK_NAMES.includes(name) && !/^Signature (?:expired|not yet current)/.test(message))
    return undefined;
  const theirs = Date.parse(headers["date"] ?? String(fields["ServerTime"]));
  return { kind: "credentials", code: "E_CLOCK", advice: `${clockText(theirs)}; set it` };
}

function clockText(theirs: number): string {
  if (Number.isNaN(theirs)) return "this machine's clock is wrong";
  const seconds = Math.round((Date.now() - theirs) / 1000);
  const [amount, unit] = Math.abs(seconds) < 120 ? [seconds, "s"] : [Math.round(seconds / 60), "min"];
  return `this machine's clock is ${Math.abs(amount)} ${unit} ${amount < 0 ? "behind" : "ahead of"} the server's`;
}
