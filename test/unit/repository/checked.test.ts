import { expect, test } from "vitest";
import {
  decodeLedgerPage,
  encodeLedgerPage,
  readLedger,
  replaceLedger,
} from "../../../src/repository/checked.ts";
import { checkedKey, newUuid } from "../../../src/repository/names.ts";
import { masterKeySealer } from "../../../src/repository/sealing.ts";
import { memoryRepository, SEALINGS, TEST_REPOSITORY } from "../../support/memory-repository.ts";
import { vectors, type MustFail } from "../../support/vectors.ts";

const never = new AbortController().signal;
const known = vectors("checked") as {
  key: string;
  pass: { name: string; encrypted: boolean; runs: number; last: Record<string, number>; hex: string }[];
  fail: MustFail[];
};
const masterKey = Buffer.from(Array.from({ length: 32 }, (_, index) => index));
const plain = memoryRepository();
const sealed = { ...plain, sealer: masterKeySealer(TEST_REPOSITORY, masterKey) };

test.each(known.pass)("reads what another program wrote: $name", ({ hex, encrypted, runs, last }) => {
  const bytes = Buffer.from(hex, "hex");
  const ledger = decodeLedgerPage(encrypted ? sealed : plain, known.key, bytes);
  expect(ledger.runs).toBe(runs);
  expect(Object.fromEntries(ledger.last)).toEqual(last);
  if (!encrypted)
    expect(encodeLedgerPage(plain, known.key, runs, Object.entries(last)).equals(bytes)).toBe(true);
});

test.each(known.fail)("refuses: $name", ({ hex, code }) => {
  const decode = (): unknown => decodeLedgerPage(plain, known.key, Buffer.from(hex, "hex"));
  expect(decode).toThrow(expect.objectContaining({ code }));
});

test.each(SEALINGS)("any flipped bit and any cut is found ($name)", ({ encrypted }) => {
  const repository = memoryRepository({ encrypted });
  const key = checkedKey(newUuid());
  const bytes = encodeLedgerPage(repository, key, 3, [[newUuid(), 2]]);
  const decode = (changed: Buffer): unknown => decodeLedgerPage(repository, key, changed);
  for (let bit = 0; bit < bytes.length * 8; bit++) {
    bytes[bit >> 3]! ^= 1 << (bit & 7);
    expect(() => decode(bytes), `bit ${bit}`).toThrow(expect.objectContaining({ kind: "corrupt" }));
    bytes[bit >> 3]! ^= 1 << (bit & 7);
  }
  for (let length = 0; length < bytes.length; length++) {
    expect(() => decode(bytes.subarray(0, length))).toThrow(expect.objectContaining({ kind: "corrupt" }));
  }
});

test("several ledgers are one: the later run of each pack, and the most runs", async () => {
  const repository = memoryRepository();
  const [a, b, c] = [newUuid(), newUuid(), newUuid()];
  await replaceLedger(repository, { runs: 4, last: new Map([[a, 4], [b, 1]]) }, [], never); // prettier-ignore
  await replaceLedger(repository, { runs: 3, last: new Map([[a, 2], [b, 3], [c, 0]]) }, [], never); // prettier-ignore
  const found = await readLedger(repository, never, () => undefined);
  expect(found.runs).toBe(4);
  expect(Object.fromEntries(found.last)).toEqual({ [a]: 4, [b]: 3, [c]: 0 });
  expect(found.keys).toHaveLength(2);
  await replaceLedger(repository, found, found.keys, never);
  expect(repository.store.objects.size).toBe(1);
});
