import { readFile } from "node:fs/promises";
import { resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import {
  GetBucketLifecycleConfigurationCommand,
  PutBucketLifecycleConfigurationCommand,
  PutBucketVersioningCommand,
  S3Client,
  TransitionStorageClass,
  type LifecycleRule,
} from "@aws-sdk/client-s3";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { Prefix } from "../../src/repository/names.ts";
import { minioClient, startMinio } from "../support/minio.ts";
import { startRgw } from "../support/rgw.ts";
import type { S3Server } from "../support/s3-process.ts";

const FOLDER = resolve(import.meta.dirname, "../../deploy/bucket");
const FILES = ["lifecycle.json", "lifecycle-tiering.json"];

/** Seconds that a day takes the server of these tests. */
const DAY = 1;

/** Every byte can be read at once from these, whoever moved the object there. */
const READABLE: readonly string[] = ["STANDARD_IA", "GLACIER_IR"];

/** As its README says to make it. */
async function rulesOf(file: string, prefix: string): Promise<LifecycleRule[]> {
  const text = (await readFile(`${FOLDER}/${file}`, "utf8")).replaceAll("PREFIX", prefix);
  return (JSON.parse(text) as { Rules: LifecycleRule[] }).Rules;
}

function clientOf(server: S3Server): S3Client {
  const { endpoint, region, accessKey: accessKeyId, secretKey: secretAccessKey } = server;
  return new S3Client({
    endpoint,
    region,
    forcePathStyle: true,
    credentials: { accessKeyId, secretAccessKey },
  });
}

/** @returns what the server says the bucket's rules are, in our order. */
async function applied(server: S3Server, bucket: string, rules: LifecycleRule[]): Promise<LifecycleRule[]> {
  const s3 = clientOf(server);
  onTestFinished(() => s3.destroy());
  const LifecycleConfiguration = { Rules: rules };
  await s3.send(new PutBucketLifecycleConfigurationCommand({ Bucket: bucket, LifecycleConfiguration }));
  const { Rules = [] } = await s3.send(new GetBucketLifecycleConfigurationCommand({ Bucket: bucket }));
  const ids = rules.map(({ ID }) => ID);
  for (const { Transitions } of Rules) Transitions?.sort((a, b) => (a.Days ?? 0) - (b.Days ?? 0));
  return Rules.sort((a, b) => ids.indexOf(a.ID) - ids.indexOf(b.ID));
}

async function versions(server: S3Server, bucket: string): Promise<Map<string, number>> {
  const counts = new Map<string, number>();
  const listed = minioClient(server).listObjects(bucket, "", true, { IncludeVersion: true });
  for await (const { name } of listed as AsyncIterable<{ name: string }>) {
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  return counts;
}

async function until(fact: () => Promise<boolean>): Promise<void> {
  while (!(await fact())) await delay(200);
}

describe("a server that knows all of the rules", () => {
  let rgw: S3Server;
  beforeAll(async () => (rgw = await startRgw({ lifecycleDay: DAY })));
  afterAll(() => rgw.stop());

  test.each(FILES)("takes %s, and gives it back as it is", async (file) => {
    const bucket = await rgw.createBucket(`takes-${file.replace(".json", "")}`);
    const rules = await rulesOf(file, "vms");
    expect(await applied(rgw, bucket, rules)).toEqual(rules);
  });

  test("clears uploads and former leases, and leaves all that is current", async () => {
    const bucket = await rgw.createBucket("cleared");
    const client = minioClient(rgw);
    const s3 = clientOf(rgw);
    const Status = "Enabled";
    await s3.send(new PutBucketVersioningCommand({ Bucket: bucket, VersioningConfiguration: { Status } }));
    s3.destroy();
    const keys = Object.values(Prefix).map((kind) => `vms/${kind}x`);
    for (const key of [...keys, "vms/leases/x", "other/leases/x", "other/leases/x"]) {
      await client.putObject(bucket, key, "x");
    }
    await client.initiateNewMultipartUpload(bucket, "vms/packs/y", {});
    await client.initiateNewMultipartUpload(bucket, "other/packs/y", {});
    expect((await versions(rgw, bucket)).get("vms/leases/x")).toBe(2);
    await applied(rgw, bucket, await rulesOf("lifecycle.json", "vms"));
    await until(async () => (await versions(rgw, bucket)).get("vms/leases/x") === 1);
    await until(async () => (await client.findUploadId(bucket, "vms/packs/y")) === undefined);
    const left = await versions(rgw, bucket);
    expect([...left].filter(([key]) => key.startsWith("vms/")).sort()).toEqual(
      keys.map((key) => [key, 1]).sort(),
    );
    expect(left.get("other/leases/x")).toBe(2);
    expect(await client.findUploadId(bucket, "other/packs/y")).toBeDefined();
  });
});

test("MinIO takes what its part of the README says", async () => {
  const minio = await startMinio();
  try {
    const bucket = await minio.createBucket("lifecycle");
    const rules = await rulesOf("lifecycle.json", "vms");
    await expect(applied(minio, bucket, rules)).rejects.toThrow();
    const taken = await applied(minio, bucket, rules.slice(1));
    expect(taken.map(({ ID }) => ID)).toEqual(rules.slice(1).map(({ ID }) => ID));
  } finally {
    await minio.stop();
  }
});

describe.each(FILES)("%s", (file) => {
  test("never expires what is current, and keeps every byte readable", async () => {
    for (const { Expiration, Transitions = [], NoncurrentVersionTransitions, ID } of await rulesOf(
      file,
      "vms",
    )) {
      expect(Expiration ?? { ExpiredObjectDeleteMarker: true }, ID).toEqual({
        ExpiredObjectDeleteMarker: true,
      });
      expect(NoncurrentVersionTransitions, ID).toBeUndefined();
      for (const { StorageClass } of Transitions) {
        expect(Object.values(TransitionStorageClass), "a class of S3").toContain(StorageClass);
        expect(READABLE, ID).toContain(StorageClass);
      }
    }
  });

  test("is of this repository alone, and moves packs alone", async () => {
    for (const { Filter, Transitions } of await rulesOf(file, "vms")) {
      expect(Filter?.Prefix).toMatch(/^vms\//);
      if (Transitions !== undefined) expect(Filter?.Prefix).toBe(`vms/${Prefix.packs}`);
    }
  });

  test("has a line in the README for each rule", async () => {
    const readme = await readFile(`${FOLDER}/README.md`, "utf8");
    for (const { ID } of await rulesOf(file, "vms")) expect(readme).toContain(`| \`${ID}\` `);
  });
});

test("the rules of one file are those of the other, but for the classes", async () => {
  const [plain, tiering] = [await rulesOf(FILES[0]!, "vms"), await rulesOf(FILES[1]!, "vms")];
  expect(tiering.filter(({ Transitions }) => Transitions === undefined)).toEqual(plain);
});
