import { randomBytes } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { openStore } from "../../src/store/open.ts";
import type { ObjectStore } from "../../src/store/store.ts";
import { failure, pieces } from "../support/outcomes.ts";
import { FakeS3, type S3Fault } from "../support/fake-s3.ts";

const signal = new AbortController().signal;
const SLOW_DOWN = { kind: "answer", status: 503, code: "SlowDown" } as const;

let fake: FakeS3;
let store: ObjectStore;

beforeEach(async () => {
  fake = await FakeS3.start();
  store = await openFake();
  await store.now(signal); // contact is made: from now on it is an outage
});

afterEach(() => {
  store.close();
  fake.stop();
});

async function openFake(
  more: { readonly idleTimeoutMs?: number; readonly attemptsMax?: number } = {},
): Promise<ObjectStore> {
  return await openStore(fake.location, {
    credentials: { accessKeyId: "key", secretAccessKey: "secret" },
    retry: { attemptsMax: more.attemptsMax ?? 8, baseMs: 5, waitMaxMs: 50, budgetMs: 10_000 },
    ...(more.idleTimeoutMs === undefined ? {} : { idleTimeoutMs: more.idleTimeoutMs }),
  });
}

describe("create", () => {
  test("a lost reply, found again by its bytes (R19)", async () => {
    fake.plan("PutObject", { kind: "lost" });
    await store.put("a", Buffer.from("mine"), signal);
    fake.assertAllHit();
    expect(fake.objects.get("a")).toEqual(Buffer.from("mine"));
    expect(fake.count("PutObject")).toBe(2);
  });

  test("a lost reply while somebody else takes the name is E_EXISTS, not success", async () => {
    fake.plan("PutObject", { kind: "dropped" });
    const putting = store.put("a", Buffer.from("mine"), signal);
    while (fake.count("PutObject") === 0) await delay(1);
    fake.objects.set("a", Buffer.from("his!"));
    expect(await failure(putting)).toMatchObject({ kind: "locked", code: "E_EXISTS" });
    expect(fake.objects.get("a")).toEqual(Buffer.from("his!"));
  });

  test("every reply lost: the object itself is the answer", async () => {
    fake.conditional = false;
    fake.plan("PutObject", { kind: "lost" }, 8);
    await store.put("a", Buffer.from("mine"), signal);
    fake.assertAllHit();
  });

  test("a server that ignores If-None-Match is not made to overwrite", async () => {
    fake.conditional = false;
    fake.objects.set("a", Buffer.from("his!"));
    for (const body of [Buffer.from("mine"), Buffer.from("longer")]) {
      expect(await failure(store.put("a", body, signal))).toMatchObject({ code: "E_EXISTS" });
      expect(await failure(store.putStream("a", pieces(body), signal))).toMatchObject({ code: "E_EXISTS" });
    }
    await store.put("a", Buffer.from("his!"), signal);
    expect(fake.count("PutObject")).toBe(0);
  });

  test("a server that refuses If-None-Match gets requests without it", async () => {
    fake.plan("PutObject", { kind: "answer", status: 501, code: "NotImplemented" });
    await store.put("a", Buffer.from("mine"), signal);
    await store.put("b", Buffer.from("mine"), signal);
    fake.assertAllHit();
    expect(fake.count("PutObject")).toBe(3);
  });

  test("a burst of 503 SlowDown is ridden out, each attempt counted", async () => {
    fake.plan("PutObject", SLOW_DOWN, 5);
    await store.put("a", Buffer.from("mine"), signal);
    fake.assertAllHit();
    expect(store.requests()).toMatchObject({ PutObject: 6 });
  });

  test("an outage that lasts ends in E_STORE after bounded attempts", async () => {
    fake.plan("PutObject", SLOW_DOWN, 8);
    expect(await failure(store.put("a", Buffer.from("mine"), signal))).toMatchObject({
      kind: "unavailable",
      code: "E_STORE",
    });
    expect(fake.count("PutObject")).toBe(8);
    expect(fake.objects.size).toBe(0);
  });

  test("Retry-After is waited for, and an abort ends that at once", async () => {
    fake.plan("PutObject", { ...SLOW_DOWN, headers: { "retry-after": "3600" } });
    const run = new AbortController();
    const putting = failure(store.put("a", Buffer.from("mine"), run.signal));
    while (fake.count("PutObject") === 0) await delay(1);
    await delay(200); // four times the longest wait of the policy
    expect(fake.count("PutObject")).toBe(1);
    run.abort(new Error("enough"));
    expect(await putting).toBe(run.signal.reason);
  });

  test("a silent server is given up after the idle time", async () => {
    store.close();
    store = await openFake({ idleTimeoutMs: 100 });
    fake.plan("PutObject", { kind: "silent" });
    await store.put("a", Buffer.from("mine"), signal);
    fake.assertAllHit();
    expect(fake.count("PutObject")).toBe(2);
  });

  test("an abort ends a silent request at once", async () => {
    fake.plan("PutObject", { kind: "silent" });
    const run = new AbortController();
    const putting = failure(store.put("a", Buffer.from("mine"), run.signal));
    while (fake.count("PutObject") === 0) await delay(1);
    run.abort(new Error("enough"));
    expect(await putting).toBe(run.signal.reason);
  });
});

describe("streams", () => {
  const body = randomBytes(20 * MiB);

  test("a lost reply to the completion, found again by size and digest", async () => {
    fake.plan("CompleteMultipartUpload", { kind: "lost" });
    expect(await store.putStream("s", pieces(body, MiB), signal)).toBe(body.length);
    fake.assertAllHit();
    expect(fake.objects.get("s")?.equals(body)).toBe(true);
  });

  test("a completion that is refused leaves no upload", async () => {
    fake.plan("CompleteMultipartUpload", { kind: "answer", status: 400, code: "EntityTooSmall" });
    expect(await failure(store.putStream("s", pieces(body, MiB), signal))).toMatchObject({
      code: "E_REFUSED",
    });
    expect(fake.uploads.size).toBe(0);
    expect(fake.objects.size).toBe(0);
  });

  test("a part that fails for good ends it though the stream hangs, and leaves no upload", async () => {
    fake.plan("UploadPart", { kind: "answer", status: 403, code: "AccessDenied" });
    const hanging = (async function* () {
      yield* pieces(body.subarray(0, 9 * MiB), MiB);
      await new Promise(() => {});
    })();
    expect(await failure(store.putStream("s", hanging, signal))).toMatchObject({ code: "E_ACCESS" });
    expect(fake.uploads.size).toBe(0);
  });

  test("parts are tried again one by one", async () => {
    fake.plan("UploadPart", SLOW_DOWN, 2);
    await store.putStream("s", pieces(body, MiB), signal);
    fake.assertAllHit();
    expect(fake.count("UploadPart")).toBe(5);
    expect(fake.objects.get("s")?.equals(body)).toBe(true);
  });

  test("an abort while a part hangs leaves no upload", async () => {
    fake.plan("UploadPart", { kind: "silent" });
    const run = new AbortController();
    const putting = failure(store.putStream("s", pieces(body, MiB), run.signal));
    while (fake.count("UploadPart") === 0) await delay(1);
    run.abort(new Error("enough"));
    expect(await putting).toBe(run.signal.reason);
    expect(fake.uploads.size).toBe(0);
  });
});

describe("uploads in parts", () => {
  const PART = 5 * MiB;
  const body = randomBytes(2 * PART + 10);

  async function upload(to: ObjectStore): Promise<void> {
    const begun = await to.beginUpload("pack", signal);
    await Promise.all(
      [0, 1, 2].map((number) =>
        begun.part(number, body.subarray(number * PART, (number + 1) * PART), signal),
      ),
    );
    await begun.complete(signal);
  }

  test("parts that meet resets and 503 are sent again, from the same buffer", async () => {
    fake.plan("UploadPart", { kind: "lost" });
    fake.plan("UploadPart", { kind: "dropped" });
    fake.plan("UploadPart", SLOW_DOWN, 3);
    await upload(store);
    fake.assertAllHit();
    expect(fake.objects.get("pack")?.equals(body)).toBe(true);
  });

  test("a completion whose reply is lost: the object is there", async () => {
    fake.plan("CompleteMultipartUpload", { kind: "lost" });
    await upload(store);
    fake.assertAllHit();
    expect(fake.count("HeadObject")).toBe(1);
  });

  test("a completion that was sent twice on its way, and answered with the second refusal: the object is there", async () => {
    fake.plan("CompleteMultipartUpload", { kind: "twice" });
    await upload(store);
    fake.assertAllHit();
    expect(fake.objects.get("pack")?.equals(body)).toBe(true);
  });

  test.each(["MalformedXML", "InvalidPart", "InvalidPartOrder"])(
    "a completion that was damaged on the way, which servers call %s, is tried again",
    async (code) => {
      fake.plan("CompleteMultipartUpload", { kind: "answer", status: 400, code });
      await upload(store);
      fake.assertAllHit();
      expect(fake.objects.get("pack")?.equals(body)).toBe(true);
    },
  );

  test("a completion that answers 200 with an error is tried again", async () => {
    fake.plan("CompleteMultipartUpload", { kind: "answer", status: 200, code: "InternalError" });
    await upload(store);
    fake.assertAllHit();
    expect(fake.objects.get("pack")?.equals(body)).toBe(true);
  });

  test("an ambiguous completion with an object of another size is no success", async () => {
    fake.plan("CompleteMultipartUpload", { kind: "lost" });
    fake.plan("HeadObject", { kind: "claims", headers: { "content-length": "7" } });
    expect(await failure(upload(store))).toMatchObject({ kind: "usage" });
    fake.assertAllHit();
  });

  test("a completion that never works leaves neither upload nor object", async () => {
    fake.plan("CompleteMultipartUpload", SLOW_DOWN, 8);
    expect(await failure(upload(store))).toMatchObject({ kind: "unavailable", code: "E_STORE" });
    expect(fake.uploads.size).toBe(0);
    expect(fake.objects.size).toBe(0);
  });

  test("abort waits for parts on their way, and keeps what is published", async () => {
    fake.plan("UploadPart", { kind: "silent" });
    const begun = await store.beginUpload("pack", signal);
    const sending = failure(begun.part(0, body.subarray(0, PART), signal));
    while (fake.count("UploadPart") === 0) await delay(1);
    await begun.abort();
    expect(await sending).toMatchObject({ code: "E_STOPPED" });
    expect(fake.uploads.size).toBe(0);
    expect(fake.log.at(-1)).toBe("AbortMultipartUpload pack");
  });

  test("abort does not throw when the server is gone", async () => {
    store.close();
    store = await openFake({ attemptsMax: 2 });
    const begun = await store.beginUpload("pack", signal);
    fake.stop();
    await begun.abort();
  });
});

describe.each([false, true])("read, past the SDK: %s", (isPast) => {
  const body = randomBytes(3 * MiB);
  beforeEach(async () => {
    fake.objects.set("o", body);
    if (isPast) await store.getRange("o", 0, Buffer.alloc(1), signal); // what the next ones are modelled on
  });
  afterEach(() => {
    if (isPast) expect(fake.withoutSdk).toBeGreaterThan(0);
  });

  test("a reset in the middle of a body: it goes on where it stopped", async () => {
    fake.plan("GetObject", { kind: "cut", bytes: MiB });
    fake.plan("GetObject", { kind: "cut", bytes: 100 });
    const into = Buffer.alloc(2 * MiB);
    await store.getRange("o", 1000, into, signal);
    fake.assertAllHit();
    expect(into.equals(body.subarray(1000, 1000 + 2 * MiB))).toBe(true);
  });

  test("so does a whole object, and a tail", async () => {
    fake.plan("GetObject", { kind: "cut", bytes: MiB });
    expect((await store.get("o", 4 * MiB, signal)).equals(body)).toBe(true);
    fake.plan("GetObject", { kind: "cut", bytes: 10 });
    expect((await store.getTail("o", 100_000, signal)).bytes.equals(body.subarray(-100_000))).toBe(true);
    fake.assertAllHit();
  });

  test("a body that stalls is given up and gone on with", async () => {
    store.close();
    store = await openFake({ idleTimeoutMs: 100 });
    fake.plan("GetObject", { kind: "stall", bytes: 1000 });
    const into = Buffer.alloc(MiB);
    await store.getRange("o", 0, into, signal);
    fake.assertAllHit();
    expect(into.equals(body.subarray(0, MiB))).toBe(true);
  });

  test("an abort in the middle of a body ends it", async () => {
    fake.plan("GetObject", { kind: "stall", bytes: 1000 });
    const run = new AbortController();
    const into = Buffer.alloc(MiB);
    const reading = failure(store.getRange("o", 0, into, run.signal));
    while (into.subarray(0, 1000).every((byte) => byte === 0)) await delay(1);
    run.abort(new Error("enough"));
    expect(await reading).toBe(run.signal.reason);
  });

  test("an answer for another range, a longer and a shorter one, are errors", async () => {
    for (const range of [
      "bytes 5-104/3145728",
      "bytes 0-199/3145728",
      "bytes 0-49/3145728",
      "bytes */3145728",
    ]) {
      fake.plan("GetObject", { kind: "claims", headers: { "content-range": range } });
      const reading = store.getRange("o", 0, Buffer.alloc(100), signal);
      expect(await failure(reading), range).toMatchObject({ kind: "corrupt", code: "E_OBJECT_SIZE" });
    }
  });

  test("a body shorter than its range is gone on with", async () => {
    fake.plan("GetObject", { kind: "resized", bytes: 1000 });
    const into = Buffer.alloc(5000);
    await store.getRange("o", 100, into, signal);
    fake.assertAllHit();
    expect(into.equals(body.subarray(100, 5100))).toBe(true);
  });

  test("a body longer than its range is an error, and writes nothing past the buffer", async () => {
    fake.plan("GetObject", { kind: "resized", bytes: 300_000 });
    const around = Buffer.alloc(5100, 0xaa);
    const reading = store.getRange("o", 0, around.subarray(0, 5000), signal);
    expect(await failure(reading)).toMatchObject({ kind: "corrupt", code: "E_OBJECT_SIZE" });
    expect(around.subarray(5000).equals(Buffer.alloc(100, 0xaa))).toBe(true);
  });

  test("a server that ignores the range is not believed", async () => {
    fake.plan("GetObject", { kind: "answer", status: 200, code: "x" }, isPast ? 2 : 1); // the SDK asks again
    const reading = store.getRange("o", 0, Buffer.alloc(100), signal);
    expect(await failure(reading)).toMatchObject({ kind: "corrupt", code: "E_OBJECT_SIZE" });
  });
});

describe("past the SDK", () => {
  const body = randomBytes(1000);
  const read = async (): Promise<void> => {
    const into = Buffer.alloc(100);
    await store.getRange("o", 50, into, signal);
    expect(into.equals(body.subarray(50, 150))).toBe(true);
  };
  beforeEach(async () => {
    fake.objects.set("o", body);
    await read();
    expect(fake.withoutSdk).toBe(0);
  });

  test("what a server refuses the SDK asks for, and after three refusals everything", async () => {
    for (const status of [403, 400, 301]) {
      fake.plan("GetObject", { kind: "answer", status, code: "AccessDenied" });
      await read();
      await read();
    }
    fake.assertAllHit();
    expect(fake.withoutSdk).toBe(5); // each refused, and the ones after the first two
    for (let count = 0; count < 3; count++) await read();
    expect(fake.withoutSdk).toBe(5);
  });

  test("a server in trouble, and an object that is not there, change nothing", async () => {
    fake.plan("GetObject", SLOW_DOWN, 3);
    await read();
    fake.assertAllHit();
    const missing = store.getRange("nothing", 0, Buffer.alloc(1), signal);
    expect(await failure(missing)).toMatchObject({ code: "E_NO_OBJECT" });
    const beyond = store.getRange("o", 2000, Buffer.alloc(1), signal);
    expect(await failure(beyond)).toMatchObject({ code: "E_OBJECT_SIZE" });
    const before = fake.withoutSdk;
    await read();
    expect(fake.withoutSdk).toBe(before + 1);
  });

  test("an abort ends the wait for an answer", async () => {
    fake.plan("GetObject", { kind: "silent" });
    const run = new AbortController();
    const reading = failure(store.getRange("o", 0, Buffer.alloc(1), run.signal));
    while (fake.withoutSdk === 0) await delay(1);
    run.abort(new Error("enough"));
    expect(await reading).toBe(run.signal.reason);
  });
});

test("a deletion that answers 200 but fails for some keys is an error, tried again where that helps", async () => {
  const answer = (code: string): S3Fault => ({
    kind: "answer",
    status: 200,
    body: `<DeleteResult>${code === "" ? "" : `<Error><Key>b</Key><Code>${code}</Code></Error>`}</DeleteResult>`,
  });
  fake.plan("DeleteObjects", answer("AccessDenied"));
  const error = await failure(store.delete(["a", "b"], signal));
  expect(error).toMatchObject({ kind: "credentials", code: "E_ACCESS" });
  expect(String(error)).toContain("DeleteObjects of b");
  fake.plan("DeleteObjects", answer("InternalError"));
  fake.plan("DeleteObjects", answer("NoSuchKey"));
  await store.delete(["a", "b"], signal);
  fake.assertAllHit();
});

describe("the clock", () => {
  test("is the server's, also when it is far off", async () => {
    fake.skewMs = -3 * 3600_000;
    await store.head("x", signal);
    const off = (await store.now(signal)).getTime() - Date.now();
    expect(Math.abs(off + 3 * 3600_000)).toBeLessThan(60_000);
  });

  test("goes on without being asked", async () => {
    const [one, requests] = [await store.now(signal), fake.log.length];
    await delay(20);
    expect((await store.now(signal)).getTime()).toBeGreaterThan(one.getTime());
    expect(fake.log).toHaveLength(requests);
  });

  test("a request refused for it says by how much", async () => {
    fake.skewMs = 47 * 60_000;
    fake.plan("PutObject", { kind: "answer", status: 403, code: "RequestTimeTooSkewed" });
    const error = await failure(store.put("a", Buffer.from("x"), signal));
    expect(error).toMatchObject({ kind: "credentials", code: "E_CLOCK" });
    expect(String(error)).toContain("47 min behind");
  });
});

test("a HEAD that is refused without a word why is tried again: RequestTimeout is one of the reasons", async () => {
  await store.put("a", Buffer.from("mine"), signal);
  fake.plan("HeadObject", { kind: "answer", status: 400 });
  expect(await store.head("a", signal)).toMatchObject({ size: 4 });
  fake.assertAllHit();
});

test("a wrong region is named", async () => {
  fake.plan("GetObject", {
    kind: "answer",
    status: 301,
    code: "PermanentRedirect",
    headers: { "x-amz-bucket-region": "eu-north-1" },
  });
  fake.plan("GetObject", {
    kind: "answer",
    status: 400,
    code: "AuthorizationHeaderMalformed",
    fields: { Region: "eu-north-1" },
  });
  for (let count = 0; count < 2; count++) {
    const error = await failure(store.get("a", 1, signal));
    expect(error).toMatchObject({ kind: "usage", code: "E_REGION" });
    expect(String(error)).toContain("?region=eu-north-1");
  }
});

test("a server that was never reached is given up soon", async () => {
  const fresh = await openFake();
  fake.stop();
  const error = await failure(fresh.get("a", 1, signal));
  expect(error).toMatchObject({ kind: "unavailable", code: "E_STORE" });
  expect(String(error)).toContain("check the endpoint");
  expect(fresh.requests()).toEqual({ GetObject: 4 });
  fresh.close();
});
