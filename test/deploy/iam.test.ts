import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { resolve } from "node:path";
import {
  AbortMultipartUploadCommand,
  CreateMultipartUploadCommand,
  DeleteBucketPolicyCommand,
  DeleteObjectCommand,
  GetObjectCommand,
  ListMultipartUploadsCommand,
  ListObjectsV2Command,
  PutBucketLifecycleConfigurationCommand,
  PutBucketVersioningCommand,
  PutObjectCommand,
  S3Client,
} from "@aws-sdk/client-s3";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Prefix, REPOSITORY_KEY } from "../../src/repository/names.ts";
import { minioClient, startMinio } from "../support/minio.ts";
import { iamPolicy, limitedTo } from "../support/s3-access.ts";
import type { S3Server } from "../support/s3-process.ts";

const PREFIX = "vms";

/** What may be done with the objects of one kind. Everything not said here must be refused. */
type Rights = "read" | "write" | "write, abort" | "write, delete" | "write, abort, delete" | "delete";

/** What each policy is for, in the order of its README. Every policy reads and lists the whole repository. */
const MAY: Readonly<Record<string, Readonly<Record<string, Rights>>>> = {
  owner: { [REPOSITORY_KEY]: "write", [Prefix.keys]: "write, delete" },
  writer: {
    [Prefix.packs]: "write, abort",
    [Prefix.layers]: "write, abort",
    [Prefix.generations]: "write",
    [Prefix.runs]: "write",
    [Prefix.leases]: "write, delete",
    [Prefix.index]: "write",
  },
  maintainer: {
    [Prefix.packs]: "write, abort, delete",
    [Prefix.layers]: "delete",
    [Prefix.generations]: "write, delete",
    [Prefix.runs]: "delete",
    [Prefix.leases]: "write, delete",
    [Prefix.index]: "write, delete",
    [Prefix.forwards]: "write, delete",
    [Prefix.condemned]: "write, delete",
    [Prefix.damaged]: "write, delete",
    [Prefix.checked]: "write, delete",
    [Prefix.holds]: "write, delete",
    [Prefix.forgotten]: "write, delete",
    [Prefix.profiles]: "delete",
  },
  restorer: { [Prefix.runs]: "write", [Prefix.profiles]: "write, delete" },
  scrubber: {},
};

/** Who may see uploads that were begun and not ended. */
const SEES_UPLOADS = ["writer", "maintainer"];

const KINDS = [REPOSITORY_KEY, ...Object.values(Prefix)];

let minio: S3Server;
let bucket: string;

beforeAll(async () => {
  minio = await startMinio();
  bucket = await minio.createBucket("policies");
});
afterAll(() => minio.stop());

async function clientOf(policy: string): Promise<S3Client> {
  const env = await limitedTo(minio, [await iamPolicy(policy, bucket, PREFIX)]);
  return new S3Client({
    endpoint: minio.endpoint,
    region: minio.region,
    forcePathStyle: true,
    maxAttempts: 1,
    credentials: {
      accessKeyId: env["AWS_ACCESS_KEY_ID"]!,
      secretAccessKey: env["AWS_SECRET_ACCESS_KEY"]!,
      sessionToken: env["AWS_SESSION_TOKEN"]!,
    },
  });
}

/** @throws Error for any failure but a refusal. */
async function allowed(request: Promise<unknown>): Promise<boolean> {
  try {
    await request;
    return true;
  } catch (error) {
    if ((error as Error).name === "AccessDenied") return false;
    throw error;
  }
}

/** As the server's owner, so that there is something to read and to delete. */
async function stored(kind: string, prefix = PREFIX): Promise<string> {
  const key = `${prefix}/${kind.endsWith("/") ? kind + randomUUID() : kind}`;
  await minioClient(minio).putObject(bucket, key, "x");
  return key;
}

async function rightsOn(s3: S3Client, kind: string, prefix?: string): Promise<string> {
  const Key = await stored(kind, prefix);
  const object = { Bucket: bucket, Key };
  const rights: string[] = [];
  if (await allowed(s3.send(new GetObjectCommand(object)))) rights.push("read");
  if (await allowed(s3.send(new PutObjectCommand({ ...object, Body: "y" })))) rights.push("write");
  const begun = await minioClient(minio).initiateNewMultipartUpload(bucket, Key, {});
  if (await allowed(s3.send(new AbortMultipartUploadCommand({ ...object, UploadId: begun }))))
    rights.push("abort");
  if (await allowed(s3.send(new DeleteObjectCommand(object)))) rights.push("delete");
  return rights.join(", ");
}

describe.each(Object.entries(MAY))("%s", (policy, may) => {
  let s3: S3Client;
  beforeAll(async () => (s3 = await clientOf(policy)));
  afterAll(() => s3.destroy());

  test.each(KINDS)("objects of %s", async (kind) => {
    const rights = may[kind];
    expect(await rightsOn(s3, kind)).toBe(rights === undefined ? "read" : `read, ${rights}`);
  });

  test("nothing of what lies beside the repository", async () => {
    for (const kind of KINDS) expect(await rightsOn(s3, kind, `${PREFIX}-2`)).toBe("");
    const key = { Bucket: bucket, Key: `${PREFIX}/other/x` };
    expect(await allowed(s3.send(new PutObjectCommand({ ...key, Body: "y" })))).toBe(false);
    expect(await allowed(s3.send(new CreateMultipartUploadCommand(key)))).toBe(false);
    for (const Prefix of [undefined, "", PREFIX, `${PREFIX}-2/`]) {
      expect(await allowed(s3.send(new ListObjectsV2Command({ Bucket: bucket, Prefix })))).toBe(false);
    }
    expect(
      await allowed(s3.send(new ListObjectsV2Command({ Bucket: bucket, Prefix: `${PREFIX}/packs/` }))),
    ).toBe(true);
  });

  test("nothing of the bucket itself", async () => {
    const Bucket = bucket;
    expect(await allowed(s3.send(new ListMultipartUploadsCommand({ Bucket })))).toBe(
      SEES_UPLOADS.includes(policy),
    );
    const rule = { ID: "all", Status: "Enabled", Filter: { Prefix: "" }, Expiration: { Days: 1 } } as const;
    const object = { Bucket, Key: `${PREFIX}/packs/x` };
    const requests: readonly (() => Promise<unknown>)[] = [
      () => s3.send(new DeleteObjectCommand({ ...object, VersionId: randomUUID() })),
      () =>
        s3.send(
          new PutBucketLifecycleConfigurationCommand({ Bucket, LifecycleConfiguration: { Rules: [rule] } }),
        ),
      () =>
        s3.send(new PutBucketVersioningCommand({ Bucket, VersioningConfiguration: { Status: "Suspended" } })),
      () => s3.send(new DeleteBucketPolicyCommand({ Bucket })),
    ];
    for (const request of requests) {
      expect(await allowed(request()), request.toString()).toBe(false);
    }
  });
});

test("the README has a line for each policy, and there is no other", async () => {
  const folder = resolve(import.meta.dirname, "../../deploy/iam");
  const readme = await readFile(`${folder}/README.md`, "utf8");
  const named = [...readme.matchAll(/^\| `([a-z-]+)\.json`/gm)].map(([, name]) => name!);
  expect(named).toEqual([...Object.keys(MAY), "object-lock"]);
});

test("every kind of object can be cleared away by somebody: a new one is thought of here", () => {
  const clearable = [MAY["owner"]!, MAY["maintainer"]!].flatMap((may) => Object.keys(may));
  expect(clearable.sort()).toEqual([...KINDS].sort());
});
