import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, expect, test } from "vitest";
import { GiB, KiB, MiB } from "../../src/bytes/size.ts";
import { AppError } from "../../src/errors.ts";
import { makeAllowance, type Allowance, type AllowanceWish } from "../../src/store/allowance.ts";
import { openStore } from "../../src/store/open.ts";
import type { ObjectStore } from "../../src/store/store.ts";
import { startMinio } from "../support/minio.ts";
import { failure } from "../support/outcomes.ts";
import type { S3Server } from "../support/s3-process.ts";

const never = new AbortController().signal;

const PART = 5 * MiB;
/** What may go ahead of its time: a burst, and a piece. */
const AHEAD = (limit: { readonly burst: number }): number => limit.burst + 64 * KiB;

let server: S3Server;
let bucket: string;

beforeAll(async () => {
  server = await startMinio();
  bucket = await server.createBucket("limits");
});

afterAll(async () => {
  await server.stop();
});

async function open(
  wish: AllowanceWish,
): Promise<{ readonly store: ObjectStore; readonly allowance: Allowance }> {
  const allowance = makeAllowance(wish)!;
  const credentials = { accessKeyId: server.accessKey, secretAccessKey: server.secretKey };
  return { store: await openStore(server.location(bucket), { credentials, allowance }), allowance };
}

/** Seconds. */
async function time(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await work();
  return (performance.now() - started) / 1000;
}

/** Uploads parts at the same time, and reads the object back. */
async function roundTrip(
  store: ObjectStore,
  key: string,
  parts: readonly Buffer[],
): Promise<{ up: number; down: number }> {
  const up = await time(async () => {
    const upload = await store.beginUpload(key, never);
    await Promise.all(parts.map((part, number) => upload.part(number, part, never)));
    await upload.complete(never);
  });
  const size = parts.reduce((sum, part) => sum + part.length, 0);
  const read = Buffer.alloc(size);
  const half = size / 2;
  const down = await time(() =>
    Promise.all([
      store.getRange(key, 0, read.subarray(0, half), never),
      store.getRange(key, half, read.subarray(half), never),
    ]),
  );
  expect(read.equals(Buffer.concat(parts))).toBe(true);
  return { up, down };
}

test("parts and ranges go at the rate that is allowed, however many at once, and arrive whole", async () => {
  const parts = [randomBytes(PART), randomBytes(PART), randomBytes(2 * MiB)];
  const size = 2 * PART + 2 * MiB;
  const rate = 8 * MiB;
  const { store, allowance } = await open({ upload: rate, download: rate });
  const limited = await roundTrip(store, "limited", parts);
  const least = (size - AHEAD(allowance.upload!)) / rate;
  expect(limited.up).toBeGreaterThanOrEqual(least);
  expect(limited.down).toBeGreaterThanOrEqual(least);
  const half = await open({ upload: rate / 2 });
  const slower = await roundTrip(half.store, "slower", parts);
  expect(slower.up).toBeGreaterThanOrEqual((size - AHEAD(half.allowance.upload!)) / (rate / 2));
  for (const one of [{ store }, half]) one.store.close();
});

test("an abort ends a part that waits for its turn at once", async () => {
  const { store } = await open({ upload: 64 * KiB });
  const upload = await store.beginUpload("stopped", never);
  const stop = new AbortController();
  const reason = new AppError("cancelled", "E_INTERRUPTED", "Interrupted");
  const part = failure(upload.part(0, randomBytes(PART), stop.signal));
  const taken = await time(async () => {
    setImmediate(() => stop.abort(reason));
    expect(await part).toBe(reason);
  });
  expect(taken).toBeLessThan(PART / (64 * KiB) / 2);
  await upload.abort();
  store.close();
});

test("every attempt counts; when the budget is spent, only what is not of the run goes through", async () => {
  const free = await open({ upload: GiB });
  await free.store.put("b", Buffer.from("b"), never);
  free.store.close();
  const { store, allowance } = await open({ requests: 2 });
  const { spent } = allowance.requests!;
  await store.get("b", 10, spent);
  await store.get("b", 10, spent);
  expect(spent.aborted).toBe(false);
  expect(await failure(store.get("b", 10, spent))).toMatchObject({ code: "E_REQUESTS_SPENT" });
  expect(spent.aborted).toBe(true);
  expect(await failure(store.get("b", 10, spent))).toMatchObject({ code: "E_REQUESTS_SPENT" });
  expect((await store.get("b", 10, never)).toString()).toBe("b");
  store.close();
});
