import fc from "fast-check";
import { expect, test } from "vitest";
import { decodeRecord, encodeRecord } from "../../../src/repository/record.ts";

const damaged = expect.objectContaining({ kind: "corrupt", code: "E_RECORD" }) as Error;
const documents = fc.dictionary(
  fc.string().filter((field) => field !== "sha256" && field !== "__proto__"),
  fc.jsonValue({ maxDepth: 2 }),
  { minKeys: 1 },
);

test("what is written comes back, and is JSON for every tool", () => {
  fc.assert(
    fc.property(documents, (document) => {
      const bytes = encodeRecord(document);
      const plain: unknown = JSON.parse(JSON.stringify(document));
      expect(decodeRecord(bytes, "record")).toEqual(plain);
      expect(JSON.parse(bytes.toString("utf8"))).toMatchObject(plain as object);
    }),
  );
});

test("no bit can change, and no byte be missing or added", () => {
  const bytes = encodeRecord({ format: 1, text: "nächtlich, 100 %", list: [1, 2, { deep: null }] });
  for (let bit = 0; bit < bytes.length * 8; bit++) {
    const changed = Buffer.from(bytes);
    changed[bit >> 3]! ^= 1 << (bit & 7);
    expect(() => decodeRecord(changed, "record"), `bit ${bit}`).toThrow(damaged);
  }
  for (let length = 0; length < bytes.length; length++) {
    expect(() => decodeRecord(bytes.subarray(0, length), "record"), `length ${length}`).toThrow(damaged);
  }
  expect(() => decodeRecord(Buffer.concat([bytes, bytes]), "record")).toThrow(damaged);
});

test("reads from shared memory", () => {
  const bytes = encodeRecord({ format: 1 });
  const shared = Buffer.from(new SharedArrayBuffer(bytes.length));
  shared.set(bytes);
  expect(decodeRecord(shared, "record")).toEqual({ format: 1 });
});
