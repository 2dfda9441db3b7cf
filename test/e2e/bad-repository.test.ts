import { cp, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { decodeRecord, encodeRecord } from "../../src/repository/record.ts";
import { runCli, type CliResult } from "../support/cli.ts";
import { nbdkit, type GenerationJson } from "../support/exported-images.ts";
import { expectFailure } from "../support/failures.ts";
import { temporaryFolder } from "../support/folder.ts";
import { minioClient, startMinio } from "../support/minio.ts";
import { cacheEnvironment, directoryRepository, keysUnder, programFor } from "../support/repositories.ts";
import { freePort, type S3Server } from "../support/s3-process.ts";

describe("locations that cannot be", () => {
  test.each<[string, string[], RegExp]>([
    ["an unknown store", ["-r", "ftp://h/vms"], /there is no ftp: store; write s3:\/\/BUCKET\/PREFIX/],
    ["no bucket", ["-r", "s3:///vms"], /cannot be a bucket's name/],
    ["credentials in the URL", ["-r", "s3://key:secret@bucket/vms"], /environment or a profile, not the URL/],
    ["an unknown option", ["-r", "s3://bucket/vms?acl=public"], /no option "acl"; there are endpoint/],
    ["an endpoint that is none", ["-r", "s3://bucket/vms?endpoint=minio:9000"], /http:\/\/HOST:PORT/],
    ["none at all", [], /Give -r s3:\/\/BUCKET\/PREFIX or a directory, or set BLOCKHAUL_REPOSITORY/],
  ])("%s", async (_, args, message) => {
    const result = await runCli(["list", ...args], { env: { BLOCKHAUL_REPOSITORY: "" } });
    expectFailure(result, 2, message);
    expect(result.stderr).not.toContain("secret");
  });
});

describe("a bucket", () => {
  let minio: S3Server;
  let bucket: string;

  beforeAll(async () => {
    minio = await startMinio();
    bucket = await minio.createBucket("vms");
    const { code } = await runCli(["init", "-r", minio.location(bucket, "good")], { env: minio.env });
    expect(code).toBe(0);
  });

  afterAll(() => minio.stop());

  const list = (location: string, env: Readonly<Record<string, string>> = {}): Promise<CliResult> =>
    runCli(["list", "-r", location], { env: { ...minio.env, ...env } });

  test("that is not there", async () => {
    const location = minio.location("no-such-bucket", "vms");
    expectFailure(await list(location), 10, "no-such-bucket", /create|check/i);
    expectFailure(await runCli(["init", "-r", location], { env: minio.env }), 10, "no-such-bucket");
  });

  test("with wrong keys", async () => {
    const location = minio.location(bucket, "good");
    const secret = "wrong-secret";
    const wrong = await list(location, { AWS_SECRET_ACCESS_KEY: secret });
    expectFailure(wrong, 12, bucket);
    expect(wrong.stderr).not.toContain(secret);
    expectFailure(await list(location, { AWS_ACCESS_KEY_ID: "nobody" }), 12, bucket);
  });

  test("without any keys", async () => {
    const none = { AWS_ACCESS_KEY_ID: "", AWS_SECRET_ACCESS_KEY: "" };
    expectFailure(await list(minio.location(bucket, "good"), none), 12, /AWS_ACCESS_KEY_ID|credentials/i);
  });

  test("without a repository under the prefix; with another one's", async () => {
    expectFailure(
      await list(minio.location(bucket, "empty")),
      10,
      `${bucket}/empty`,
      "run blockhaul init first",
    );
    const again = await runCli(["init", "-r", minio.location(bucket, "good")], { env: minio.env });
    expectFailure(again, 2, `${bucket}/good`, "already");
    await minioClient(minio).putObject(bucket, "foreign/readme.txt", "not ours");
    const foreign = await runCli(["init", "-r", minio.location(bucket, "foreign")], { env: minio.env });
    expectFailure(foreign, 2, `${bucket}/foreign`, "choose an empty place");
  });

  test("on a server that nobody reaches", async () => {
    const endpoint = `http://127.0.0.1:${await freePort()}`;
    const location = `s3://${bucket}/good?endpoint=${encodeURIComponent(endpoint)}`;
    expectFailure(await list(location), 15, bucket, /ECONNREFUSED|reach|answer|connect/i);
  });
});

describe("a directory", () => {
  test("that is not there, or holds no repository", async () => {
    const folder = await temporaryFolder();
    const absent = programFor(join(folder, "absent"), await cacheEnvironment());
    expectFailure(await absent.run("list"), 10, absent.location, "check the path");
    expectFailure(await absent.run("backup", "nbd://127.0.0.1:1/web"), 10, absent.location);
    const empty = programFor(folder, await cacheEnvironment());
    expectFailure(await empty.run("list"), 10, folder, "run blockhaul init first");
  });

  test("of a newer version: nothing is touched", async () => {
    const repository = await directoryRepository();
    const config = join(repository.location, "repository.json");
    const document = decodeRecord(await readFile(config), "repository.json");
    await writeFile(config, encodeRecord({ ...document, format: 2, shards: 7 }));
    const before = await repository.objects();
    expectFailure(await repository.run("list"), 2, repository.location, "format 2", "update blockhaul");
    expectFailure(await repository.run("backup", "nbd://127.0.0.1:1/web"), 2, "update blockhaul");
    expectFailure(await repository.run("init"), 2, "already");
    expect(await repository.objects()).toEqual(before);
  });

  test("half created: repository.json cut short, empty, or gone while there are packs", async () => {
    const repository = await directoryRepository();
    const config = join(repository.location, "repository.json");
    const whole = await readFile(config);
    for (const part of [whole.subarray(0, whole.length - 20), Buffer.alloc(0)]) {
      await writeFile(config, part);
      expectFailure(await repository.run("list"), 13, "repository.json", repository.location);
    }
    await writeFile(config, whole);
    const { uri } = await nbdkit(["--readonly", "data", "1 2 3", `size=${MiB}`], { exportName: "web" });
    await repository.json("backup", uri);
    await rm(config);
    const lost = await repository.run("list");
    expectFailure(lost, 13, repository.location, "repository.json", "put that file back");
    expectFailure(await repository.run("init"), 2, "choose an empty place");
    // what the message asks for
    await writeFile(config, whole);
    expect((await repository.run("list")).code).toBe(0);
  });

  test("which is a copy with another's objects in it", async () => {
    const [one, two] = [await directoryRepository(), await directoryRepository()];
    const { uri } = await nbdkit(["--readonly", "data", "1 2 3", `size=${MiB}`], { exportName: "web" });
    await one.json("backup", uri);
    for (const kind of ["generations", "layers", "packs"]) {
      await mkdir(join(two.location, kind), { recursive: true });
      await cp(join(one.location, kind), join(two.location, kind), { recursive: true });
    }
    expectFailure(await two.run("list"), 13, (await keysUnder(one, "generations/"))[0]!);
  });
});

describe("a generation", () => {
  test("that does not exist, or could be several", async () => {
    const repository = await directoryRepository();
    const target = join(await temporaryFolder(), "restored.raw");
    const restore = (name: string): Promise<CliResult> => repository.run("restore", name, "--to", target);
    expectFailure(await restore("web"), 10, repository.location, "has no generations yet");
    const { uri } = await nbdkit(["--readonly", "data", "1 2 3", `size=${MiB}`]);
    const first = await repository.json<GenerationJson>("backup", uri, "--name", "web");
    const second = await repository.json<GenerationJson>("backup", uri, "--name", "web");
    expectFailure(await restore("wbe"), 10, '"wbe"', "there are web");
    expectFailure(await restore("wbe@latest"), 10, '"wbe"', "there are web");
    expectFailure(await restore("web@1999-01-01"), 10, "at or before 1999-01-01", first.generation);
    expectFailure(await restore("web@yesterday"), 2, '"web@yesterday"', "NAME@2026-11-22T03:00Z");
    expectFailure(await restore("ffffffff"), 10, '"ffffffff"');
    expectFailure(
      await restore(first.generation.slice(0, 6)),
      2,
      "Several generations begin with",
      first.generation,
      second.generation,
    );
    expectFailure(
      await repository.run("restore", "web", "--disk", "vdb", "--to", target),
      10,
      "no disk vdb",
      "disk",
    );
  });
});
