import http from "node:http";
import https from "node:https";
import { Readable } from "node:stream";
import { crc32 } from "node:zlib";
import { S3Client, type S3ClientConfig, type ServiceOutputTypes } from "@aws-sdk/client-s3";
import { NodeHttpHandler } from "@smithy/node-http-handler";
import { KiB } from "../bytes/size.ts";
import type { Allowance } from "./allowance.ts";
import type { S3Location } from "./location.ts";
import type { BuiltRequest } from "./s3-direct-get.ts";
import { PacedHandler } from "./s3-pace.ts";

export interface S3ClientOptions {
  /** Instead of those the AWS SDK finds in the environment, profile files or the machine's role. */
  readonly credentials?: {
    readonly accessKeyId: string;
    readonly secretAccessKey: string;
    readonly sessionToken?: string;
  };
  /** Whether to send a CRC-32 of each body for the server to check; unless told, to AWS only: some servers refuse. */
  readonly checksums?: boolean;
  /** A connection that is not made in this time, or on which nothing moves for that long, is given up. */
  readonly connectTimeoutMs?: number;
  readonly idleTimeoutMs?: number;
  /** How fast bodies may go, and how many requests. */
  readonly allowance?: Allowance;
}

const nothing = (): void => {};
/** The SDK would write to the console, of busy sockets and of bodies that it cannot send again. */
const SILENT = { trace: nothing, debug: nothing, info: nothing, warn: nothing, error: nothing };

/** What a client tells of each attempt. */
export interface Witness {
  /** @param request as it goes out. */
  sent(operation: string, request: BuiltRequest): void;
  answered(answer: Answer): void;
}

export interface Answer {
  /** The Date header. */
  readonly date: string | undefined;
}

/** Connections to one server, in use and idle. */
const SOCKETS_MAX = 32;
/** Bodies from here on are not hashed on https, and go out in slices of this size. */
const SLICE = 256 * KiB;

/** The parts of the SDK's requests and commands that the layers below touch. */
interface Request {
  protocol: string;
  hostname: string;
  headers: Record<string, string>;
  body?: unknown;
}
interface Context {
  commandName?: string;
  endpointV2?: { url: URL };
}
interface Arguments {
  readonly input: object;
}
type Next = (args: Arguments) => Promise<{ output: ServiceOutputTypes; response: unknown }>;

/**
 * The AWS SDK's client, set to be cheap and to fail soon enough. Credentials, region, endpoint and profile come from
 * the SDK's own chain where the location does not say.
 *
 * - Agents as instances, and no "Expect: 100-continue": with agent options the SDK makes a connection per large body.
 * - Checksums only where S3 demands them: several servers refuse or ignore the newer ones.
 * - Path style for every endpoint but AWS's own: few others have a DNS name per bucket.
 * - Without a region, an endpoint in the location gets "us-east-1", which servers other than AWS take.
 */
export async function createS3Client(
  location: S3Location,
  options: S3ClientOptions,
  witness: Witness,
): Promise<S3Client> {
  const upload = options.allowance?.upload;
  const handling = {
    httpAgent: new http.Agent({ keepAlive: true, maxSockets: SOCKETS_MAX }),
    httpsAgent: new https.Agent({ keepAlive: true, maxSockets: SOCKETS_MAX }),
    connectionTimeout: options.connectTimeoutMs ?? 5000,
    socketTimeout: options.idleTimeoutMs ?? 60_000,
    logger: SILENT,
  };
  const config: S3ClientConfig = {
    ...(location.region === undefined ? {} : { region: location.region }),
    ...(location.endpoint === undefined ? {} : { endpoint: location.endpoint }),
    ...(options.credentials === undefined ? {} : { credentials: options.credentials }),
    expectContinueHeader: false,
    requestChecksumCalculation: "WHEN_REQUIRED",
    responseChecksumValidation: "WHEN_REQUIRED",
    maxAttempts: 1,
    logger: SILENT,
    requestHandler: upload === undefined ? new NodeHttpHandler(handling) : new PacedHandler(handling, upload),
  };
  let client = new S3Client(config);
  if (location.endpoint !== undefined && !(await hasRegion(client))) {
    client = new S3Client({ ...config, region: "us-east-1" });
  }
  choosePathStyle(client, location.pathStyle);
  addChecksums(client, options.checksums);
  sliceLargeBodies(client);
  watch(client, witness);
  return client;
}

async function hasRegion(client: S3Client): Promise<boolean> {
  try {
    return (await client.config.region()) !== "";
  } catch {
    return false;
  }
}

function isAws(hostname: string): boolean {
  return /(?:^|\.)amazonaws\.com(?:\.cn)?$/.test(hostname);
}

function choosePathStyle(client: S3Client, asked: boolean | undefined): void {
  const resolve = client.config.endpointProvider;
  client.config.endpointProvider = (parameters, context) => {
    const custom = parameters.Endpoint !== undefined && !isAws(new URL(parameters.Endpoint).hostname);
    return resolve({ ...parameters, ForcePathStyle: asked ?? custom }, context);
  };
}

/** The server checks the CRC-32 of what arrives, and keeps it with the object; 0.17 s of CPU per GiB. */
function addChecksums(client: S3Client, asked: boolean | undefined): void {
  client.middlewareStack.addRelativeTo(
    (next: Next, context: object) => (args: Arguments) => {
      const { commandName, endpointV2 } = context as Context;
      if (!(asked ?? isAws(endpointV2?.url.hostname ?? ""))) return next(args);
      const input = args.input as { Body?: unknown };
      if (commandName === "CreateMultipartUploadCommand") {
        return next({ ...args, input: { ...args.input, ChecksumAlgorithm: "CRC32" } });
      }
      if (!(input.Body instanceof Uint8Array)) return next(args);
      const sum = Buffer.alloc(4);
      sum.writeUInt32BE(crc32(input.Body));
      return next({ ...args, input: { ...args.input, ChecksumCRC32: sum.toString("base64") } });
    },
    { relation: "after", toMiddleware: "endpointV2Middleware", name: "blockhaulChecksums" },
  );
}

/**
 * On https a large payload is handed over in slices: TLS would otherwise keep the ciphertext of a whole body per
 * connection. As a stream it is also not hashed (0.6 s per GiB): TLS guards it. On http the signature covers the payload's SHA-256,
 * and the socket writes from the caller's buffer.
 */
function sliceLargeBodies(client: S3Client): void {
  client.middlewareStack.add(
    (next) => (args) => {
      const request = args.request as Request;
      const { body } = request;
      if (request.protocol === "https:" && body instanceof Uint8Array && body.length >= SLICE) {
        request.body = Readable.from(slicesOf(body), { objectMode: false, highWaterMark: SLICE });
      }
      return next(args);
    },
    { step: "build", priority: "low", name: "blockhaulSlices" },
  );
}

function* slicesOf(bytes: Uint8Array): Generator<Buffer> {
  const whole = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let start = 0; start < whole.length; start += SLICE) yield whole.subarray(start, start + SLICE);
}

/** Stands next to the wire, so that every attempt is seen and every answer, errors too. */
function watch(client: S3Client, witness: Witness): void {
  client.middlewareStack.add(
    (next, context) => async (args) => {
      const operation = ((context as Context).commandName ?? "unknown").replace(/Command$/, "");
      witness.sent(operation, args.request as BuiltRequest);
      const result = await next(args);
      const response = result.response as { headers?: Record<string, string> } | undefined;
      witness.answered({ date: response?.headers?.["date"] });
      return result;
    },
    { step: "deserialize", priority: "low", name: "blockhaulWatch" },
  );
}
