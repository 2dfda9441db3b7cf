import { expect, test } from "vitest";
import {
  condemn,
  decodeCondemned,
  encodeCondemned,
  loadCondemned,
  readCondemned,
  type CondemnedRecord,
} from "../../../src/repository/condemned.ts";
import { newUuid } from "../../../src/repository/names.ts";
import { masterKeySealer } from "../../../src/repository/sealing.ts";
import { SEALINGS, TEST_REPOSITORY, memoryRepository } from "../../support/memory-repository.ts";
import { type MustFail, vectors } from "../../support/vectors.ts";

const never = new AbortController().signal;
const known = vectors("condemned") as {
  key: string;
  pass: { name: string; encrypted: boolean; hex: string; record: CondemnedRecord }[];
  fail: MustFail[];
};
const masterKey = Buffer.from(Array.from({ length: 32 }, (_, index) => index));
const plain = memoryRepository();
const sealed = { ...plain, sealer: masterKeySealer(TEST_REPOSITORY, masterKey) };

test.each(known.pass)("reads what another program wrote: $name", ({ hex, encrypted, record }) => {
  const bytes = Buffer.from(hex, "hex");
  expect(decodeCondemned(encrypted ? sealed : plain, known.key, bytes)).toEqual(record);
  if (!encrypted) expect(encodeCondemned(plain, known.key, record).equals(bytes)).toBe(true);
});

test.each(known.fail)("refuses: $name", ({ hex, code }) => {
  const decode = (): unknown => decodeCondemned(plain, known.key, Buffer.from(hex, "hex"));
  expect(decode).toThrow(expect.objectContaining({ kind: "corrupt", code }));
});

test.each(SEALINGS)("what is too much for one record goes into several ($name)", async ({ encrypted }) => {
  const repository = memoryRepository({ encrypted });
  const packs = Array.from({ length: 5 }, newUuid);
  const layers = Array.from({ length: 2 }, newUuid);
  const forwards = Array.from({ length: 2 }, newUuid);
  const since = new Date("2026-11-23T03:00:00Z");
  expect(await condemn(repository, { packs, layers, forwards }, since, never, 4)).toBe(3);
  const records = [];
  for await (const record of loadCondemned(repository, never)) records.push(record);
  expect(
    records
      .map(
        ({ packs: some, layers: others, forwards: rest = [] }) => some.length + others.length + rest.length,
      )
      .sort(),
  ).toEqual([1, 4, 4]);
  expect(new Set(records.map((record) => record.since))).toEqual(new Set([since.toISOString()]));
  expect(await readCondemned(repository, never)).toEqual({
    packs: new Set(packs),
    layers: new Set(layers),
    forwards: new Set(forwards),
  });
  expect(await condemn(repository, { packs: [], layers: [], forwards: [] }, since, never)).toBe(0);
});
