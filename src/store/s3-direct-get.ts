import { createHmac, hash } from "node:crypto";
import type { Readable } from "node:stream";
import type { S3Client } from "@aws-sdk/client-s3";

/** The parts of a request that the SDK has built and signed. */
export interface BuiltRequest {
  readonly method: string;
  readonly protocol: string;
  readonly hostname: string;
  readonly port?: number;
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
}

/** An answer of status 206. */
export interface PartialContent {
  readonly ContentRange: string | undefined;
  readonly Body: Readable;
  /** The Date header. */
  readonly date: string | undefined;
}

/** What is the same in all GETs of a bucket. */
interface Template extends Pick<BuiltRequest, "protocol" | "hostname" | "port"> {
  readonly host: string;
  /** The path, but for the key. */
  readonly base: string;
  readonly region: string;
}

interface HandledResponse {
  readonly statusCode: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Readable;
}

/** Signature Version 4, as the SDK signs for S3; others (anonymous, 4A, S3 Express) are left to it. */
const AUTHORIZATION =
  /^AWS4-HMAC-SHA256 Credential=[^/]+\/\d{8}\/([^/]+)\/s3\/aws4_request, SignedHeaders=[^,]+, Signature=[0-9a-f]{64}$/;
const NO_BODY = hash("sha256", "");
/** A server that refuses what the SDK gets through so many times is asked by the SDK alone. */
const REFUSALS_MAX = 3;

/**
 * Ranged GETs past most of the SDK, which takes a millisecond of processor time for each: more than all else that a
 * small read costs. Server, path and signature are modelled on a GET that the SDK has made; credentials and
 * connections are the SDK's. Whatever is not a plain success is for the SDK to repeat, and to tell what is wrong.
 */
export class DirectGets {
  readonly #client: Promise<S3Client>;
  #template: Template | undefined;
  #signing: { readonly secret: string; readonly scope: string; readonly key: Buffer } | undefined;
  #refusals = 0;

  constructor(client: Promise<S3Client>) {
    this.#client = client;
  }

  /** Takes a GET of the SDK's for a model. @param key of the object, below the prefix: it needs no escapes. */
  learn(request: BuiltRequest, key: string): void {
    if (this.#template !== undefined || this.#refusals >= REFUSALS_MAX) return;
    const { method, protocol, hostname, port, path, headers } = request;
    const region = AUTHORIZATION.exec(headers["authorization"] ?? "")?.[1];
    const host = headers["host"];
    if (method !== "GET" || region === undefined || host === undefined || !path.endsWith(`/${key}`)) return;
    const base = path.slice(0, -key.length);
    this.#template = { protocol, hostname, ...(port !== undefined && { port }), host, base, region };
  }

  get isReady(): boolean {
    return this.#template !== undefined;
  }

  /**
   * Sends a GET, once. Only while `isReady`.
   *
   * @param range "bytes=0-9". @returns undefined for every answer but a 206: the SDK is to ask.
   * @throws what the SDK's own handler throws when there is no answer.
   */
  async get(key: string, range: string, signal: AbortSignal): Promise<PartialContent | undefined> {
    const template = this.#template!;
    const { config } = await this.#client;
    const credentials = await config.credentials();
    const now = new Date(Date.now() + config.systemClockOffset);
    const path = template.base + key;
    const headers: Record<string, string> = {
      host: template.host,
      range,
      "x-amz-content-sha256": NO_BODY,
      "x-amz-date": now.toISOString().replaceAll(/[-:]|\.\d{3}/g, ""),
    };
    if (credentials.sessionToken !== undefined) headers["x-amz-security-token"] = credentials.sessionToken;
    const { accessKeyId, secretAccessKey } = credentials;
    headers["authorization"] = this.#sign(path, headers, template.region, accessKeyId, secretAccessKey);
    const { protocol, hostname, port } = template;
    const request = { method: "GET", protocol, hostname, port, path, headers, query: {} };
    const { response } = await (
      config.requestHandler.handle as unknown as (
        this: unknown,
        request: object,
        options: object,
      ) => Promise<{ response: HandledResponse }>
    ).call(config.requestHandler, request, { abortSignal: signal });
    if (response.statusCode !== 206) {
      response.body.destroy();
      this.#refused(response.statusCode);
      return undefined;
    }
    const { "content-range": ContentRange, date } = response.headers;
    return { ContentRange, Body: response.body, date };
  }

  /** Moved, wrongly signed, not understood: perhaps a GET of the SDK's that succeeds is a better model. */
  #refused(status: number): void {
    if (status >= 500 || status === 404 || status === 416) return;
    this.#template = undefined;
    this.#refusals++;
  }

  /** "Authenticating Requests: Using the Authorization Header" of the S3 API reference. @param headers in order. */
  #sign(
    path: string,
    headers: Readonly<Record<string, string>>,
    region: string,
    accessKeyId: string,
    secret: string,
  ): string {
    const time = headers["x-amz-date"]!;
    const scope = `${time.slice(0, 8)}/${region}/s3/aws4_request`;
    const names = Object.keys(headers).join(";");
    const lines = Object.entries(headers).map(([name, value]) => `${name}:${value}\n`);
    const canonical = `GET\n${path}\n\n${lines.join("")}\n${names}\n${NO_BODY}`;
    const text = `AWS4-HMAC-SHA256\n${time}\n${scope}\n${hash("sha256", canonical)}`;
    const signature = createHmac("sha256", this.#signingKey(secret, scope)).update(text).digest("hex");
    return `AWS4-HMAC-SHA256 Credential=${accessKeyId}/${scope}, SignedHeaders=${names}, Signature=${signature}`;
  }

  #signingKey(secret: string, scope: string): Buffer {
    if (this.#signing?.secret === secret && this.#signing.scope === scope) return this.#signing.key;
    let key: Buffer = Buffer.from(`AWS4${secret}`);
    for (const part of scope.split("/")) key = createHmac("sha256", key).update(part).digest();
    this.#signing = { secret, scope, key };
    return key;
  }
}
