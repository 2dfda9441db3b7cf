import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { GiB } from "../../../src/bytes/size.ts";
import {
  DEFAULT_PRICES,
  formatMoney,
  readPrices,
  requestCost,
  storageCost,
  transferCost,
} from "../../../src/store/prices.ts";
import { temporaryFolder } from "../../support/folder.ts";

test("PUT, COPY, POST and LIST have one price, GET and the rest another, DELETE and aborted uploads none", () => {
  const prices = { ...DEFAULT_PRICES, writesPer1000: 1000, readsPer1000: 1 };
  const writes = {
    PutObject: 1,
    CopyObject: 1,
    CreateMultipartUpload: 1,
    UploadPart: 1,
    CompleteMultipartUpload: 1,
    ListObjectsV2: 1,
    ListMultipartUploads: 1,
    PutObjectRetention: 1,
  };
  expect(requestCost(writes, prices)).toBe(8);
  const reads = { GetObject: 500, HeadObject: 300, HeadBucket: 100, GetObjectLockConfiguration: 100 };
  expect(requestCost(reads, prices)).toBeCloseTo(1, 9);
  expect(requestCost({ DeleteObjects: 1e6, AbortMultipartUpload: 1e6 }, prices)).toBe(0);
});

test("a GiB is what the sheet says it costs", () => {
  expect(storageCost(1024 * GiB, DEFAULT_PRICES)).toBeCloseTo(25.088, 6);
  expect(transferCost(GiB, DEFAULT_PRICES)).toBe(0.09);
});

test.each([
  [0, "$0"],
  [0.00001, "less than $0.0001"],
  [0.0123, "$0.0123"],
  [0.5, "$0.5000"],
  [12.345, "$12.35"],
])("%d is written %s", (amount, text) => {
  expect(formatMoney(amount, DEFAULT_PRICES)).toBe(text);
});

test("a sheet of one's own, and what is wrong with one", async () => {
  const path = join(await temporaryFolder(), "prices.json");
  const own = { ...DEFAULT_PRICES, name: "Ours", currency: "CHF ", gibMonth: 0.01 };
  await writeFile(path, JSON.stringify(own));
  expect(await readPrices(path)).toEqual(own);

  await writeFile(path, JSON.stringify({ ...own, gibOut: -1, gibMoth: 1 }));
  await expect(readPrices(path)).rejects.toMatchObject({
    kind: "usage",
    code: "E_PRICES",
    message: expect.stringMatching(
      /prices\.json cannot be used: (.*gibOut.*gibMoth|.*gibMoth.*gibOut)/,
    ) as string,
  });
  await writeFile(path, "{");
  await expect(readPrices(path)).rejects.toMatchObject({ code: "E_PRICES" });
  await expect(readPrices(`${path}.not`)).rejects.toMatchObject({ kind: "usage", code: "E_PRICES" });
});
