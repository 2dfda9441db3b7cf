import assert from "node:assert/strict";
import { createHash, randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { buffer } from "node:stream/consumers";

/**
 * What happens to one request:
 *
 * - `lost`     it is carried out, then the connection is cut without an answer
 * - `twice`    it is carried out twice, as some proxies do, and the second answer is sent
 * - `dropped`  the connection is cut before anything is done
 * - `silent`   it is carried out, the answer never comes
 * - `cut`      the answer's body ends after so many bytes, by a reset
 * - `stall`    the answer's body stops after so many bytes, and the connection stays
 * - `resized`  the body has so many bytes, and the right length for them, whatever the other headers say
 * - `answer`   this answer instead, and nothing is done
 * - `claims`   the answer's headers are replaced by these
 */
export type S3Fault =
  | { readonly kind: "lost" | "twice" | "dropped" | "silent" }
  | { readonly kind: "cut" | "stall" | "resized"; readonly bytes: number }
  | {
      readonly kind: "answer";
      readonly status: number;
      readonly code?: string;
      readonly fields?: Readonly<Record<string, string>>;
      readonly headers?: Readonly<Record<string, string>>;
      /** XML instead of S3's error document. */
      readonly body?: string;
    }
  | { readonly kind: "claims"; readonly headers: Readonly<Record<string, string>> };

interface Reply {
  status: number;
  headers: Record<string, string | number>;
  body: Buffer;
}

const NOTHING = Buffer.alloc(0);

/**
 * A server that speaks as much S3 as the store needs and, where told, misbehaves as no real server can be made to.
 * Path style, one bucket, no signatures.
 */
export class FakeS3 {
  readonly objects = new Map<string, Buffer>();
  readonly uploads = new Map<string, { readonly key: string; readonly parts: Map<number, Buffer> }>();
  /** "PutObject a/key" for each request, in the order of arrival. */
  readonly log: string[] = [];
  /** How many of these did not come from the SDK, which says who it is. */
  withoutSdk = 0;
  /** Added to the Date header, milliseconds. */
  skewMs = 0;
  /** False: `If-None-Match` is ignored, as some servers do. */
  conditional = true;
  readonly #faults: { readonly operation: string; readonly fault: S3Fault }[] = [];
  readonly #server: Server;

  private constructor() {
    this.#server = createServer((request, response) => {
      this.#answer(request, response).catch(() => response.destroy());
    });
  }

  static async start(): Promise<FakeS3> {
    const fake = new FakeS3();
    fake.#server.listen(0, "127.0.0.1");
    await once(fake.#server, "listening");
    return fake;
  }

  get endpoint(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  get location(): string {
    return `s3://bucket?endpoint=${encodeURIComponent(this.endpoint)}&region=us-east-1`;
  }

  /** The next `times` requests of this operation meet the fault; several plans for one operation come in turn. */
  plan(operation: string, fault: S3Fault, times = 1): void {
    for (let count = 0; count < times; count++) this.#faults.push({ operation, fault });
  }

  /** A fault nothing ran into tested nothing. */
  assertAllHit(): void {
    assert.deepEqual(this.#faults, []);
  }

  /** Requests of one operation so far. */
  count(operation: string): number {
    return this.log.filter((line) => line.startsWith(`${operation} `)).length;
  }

  stop(): void {
    this.#server.closeAllConnections();
    this.#server.close();
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? "/", this.endpoint);
    const key = decodeURIComponent(url.pathname.split("/").slice(2).join("/"));
    const operation = operationOf(request.method ?? "", key, url.searchParams);
    this.log.push(`${operation} ${key}`);
    if (request.headers["user-agent"] === undefined) this.withoutSdk++;
    const index = this.#faults.findIndex((planned) => planned.operation === operation);
    const fault = index < 0 ? undefined : this.#faults.splice(index, 1)[0]!.fault;
    if (fault?.kind === "dropped") return void request.socket.destroy();
    const body = await buffer(request);
    if (fault?.kind === "twice") this.#do(operation, key, url.searchParams, request, body);
    const reply =
      fault?.kind === "answer"
        ? errorReply(fault.status, fault.code ?? "", fault)
        : this.#do(operation, key, url.searchParams, request, body);
    if (fault?.kind === "lost") return void request.socket.destroy();
    if (fault?.kind === "silent") return;
    if (fault?.kind === "resized") {
      reply.body = Buffer.concat([reply.body, Buffer.alloc(fault.bytes)]).subarray(0, fault.bytes);
    }
    const claims = fault?.kind === "claims" ? fault.headers : {};
    const length = request.method === "HEAD" ? (reply.headers["content-length"] ?? 0) : reply.body.length;
    response.writeHead(reply.status, {
      date: new Date(Date.now() + this.skewMs).toUTCString(),
      "content-length": length,
      ...reply.headers,
      ...claims,
    });
    if (request.method === "HEAD") return void response.end();
    if (fault?.kind !== "cut" && fault?.kind !== "stall") return void response.end(reply.body);
    response.write(reply.body.subarray(0, fault.bytes), () => {
      if (fault.kind === "cut") request.socket.resetAndDestroy();
    });
  }

  #do(operation: string, key: string, query: URLSearchParams, request: IncomingMessage, body: Buffer): Reply {
    const { objects, uploads } = this;
    const upload = uploads.get(query.get("uploadId") ?? "");
    switch (operation) {
      case "PutObject":
        if (this.conditional && request.headers["if-none-match"] === "*" && objects.has(key)) {
          return errorReply(412, "PreconditionFailed");
        }
        objects.set(key, body);
        return { status: 200, headers: { etag: etagOf(body) }, body: NOTHING };
      case "GetObject":
      case "HeadObject":
        return this.#get(key, request.headers.range);
      case "HeadBucket":
        return { status: 200, headers: {}, body: NOTHING };
      case "CreateMultipartUpload": {
        const id = randomUUID();
        uploads.set(id, { key, parts: new Map() });
        return xml(
          200,
          `<InitiateMultipartUploadResult><UploadId>${id}</UploadId></InitiateMultipartUploadResult>`,
        );
      }
      case "UploadPart":
        if (upload === undefined) return errorReply(404, "NoSuchUpload");
        upload.parts.set(Number(query.get("partNumber")), body);
        return { status: 200, headers: { etag: etagOf(body) }, body: NOTHING };
      case "CompleteMultipartUpload": {
        if (upload === undefined) return errorReply(404, "NoSuchUpload");
        const numbers = [...body.toString().matchAll(/<PartNumber>(\d+)</g)].map((match) => Number(match[1]));
        objects.set(key, Buffer.concat(numbers.map((number) => upload.parts.get(number) ?? NOTHING)));
        uploads.delete(query.get("uploadId") ?? "");
        return xml(200, "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>");
      }
      case "AbortMultipartUpload":
        if (upload === undefined) return errorReply(404, "NoSuchUpload");
        uploads.delete(query.get("uploadId") ?? "");
        return { status: 204, headers: {}, body: NOTHING };
      default:
        return errorReply(501, "NotImplemented");
    }
  }

  #get(key: string, range: string | undefined): Reply {
    const object = this.objects.get(key);
    if (object === undefined) return errorReply(404, "NoSuchKey");
    const match = /^bytes=(\d*)-(\d*)$/.exec(range ?? "");
    if (match === null) {
      return { status: 200, headers: { "content-length": object.length }, body: object };
    }
    const start = match[1] === "" ? Math.max(0, object.length - Number(match[2])) : Number(match[1]);
    const end =
      match[1] === "" || match[2] === "" ? object.length : Math.min(object.length, Number(match[2]) + 1);
    if (start >= object.length) return errorReply(416, "InvalidRange");
    const contentRange = `bytes ${start}-${end - 1}/${object.length}`;
    return { status: 206, headers: { "content-range": contentRange }, body: object.subarray(start, end) };
  }
}

function operationOf(method: string, key: string, query: URLSearchParams): string {
  const target = key === "" ? "Bucket" : "Object";
  if (method === "POST" && query.has("delete")) return "DeleteObjects";
  if (method === "POST") return query.has("uploads") ? "CreateMultipartUpload" : "CompleteMultipartUpload";
  if (query.has("uploadId")) return method === "PUT" ? "UploadPart" : "AbortMultipartUpload";
  if (method === "GET" && query.has("list-type")) return "ListObjectsV2";
  return `${{ GET: "Get", PUT: "Put", HEAD: "Head", DELETE: "Delete" }[method] ?? method}${target}`;
}

function etagOf(body: Buffer): string {
  return `"${createHash("md5").update(body).digest("hex")}"`;
}

function xml(status: number, text: string): Reply {
  return {
    status,
    headers: { "content-type": "application/xml" },
    body: Buffer.from(`<?xml version="1.0"?>${text}`),
  };
}

function errorReply(
  status: number,
  code: string,
  more: {
    readonly fields?: Readonly<Record<string, string>>;
    readonly headers?: Readonly<Record<string, string>>;
    readonly body?: string;
  } = {},
): Reply {
  const fields = Object.entries(more.fields ?? {}).map(([name, value]) => `<${name}>${value}</${name}>`);
  const reply = xml(status, more.body ?? `<Error><Code>${code}</Code>${fields.join("")}</Error>`);
  return { ...reply, headers: { ...reply.headers, ...more.headers } };
}
