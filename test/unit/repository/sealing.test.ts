import { isDeepStrictEqual } from "node:util";
import fc from "fast-check";
import { expect, test } from "vitest";
import { SEAL_OVERHEAD } from "../../../src/chunk/codec.ts";
import { type SealedType, masterKeySealer, plainSealer } from "../../../src/repository/sealing.ts";
import { TEST_REPOSITORY } from "../../support/memory-repository.ts";
import { vectors } from "../../support/vectors.ts";

interface Sealed {
  readonly name: string;
  readonly type: SealedType;
  readonly key: string;
  readonly plain: string;
  readonly sealed: string;
}

const known = vectors("sealing") as {
  masterKey: string;
  chunkKeys: { id: string; blob: string };
  pass: Sealed[];
  fail: Omit<Sealed, "plain">[];
};
const sealer = masterKeySealer(TEST_REPOSITORY, Buffer.from(known.masterKey, "hex"));
const sealError = expect.objectContaining({ kind: "corrupt", code: "E_SEAL" }) as Error;

test.each(known.pass)("opens what another program sealed: $name", ({ type, key, plain, sealed }) => {
  expect(sealer.openObject(type, key, Buffer.from(sealed, "hex")).toString("hex")).toBe(plain);
});

test.each(known.fail)("refuses: $name", ({ type, key, sealed }) => {
  expect(() => sealer.openObject(type, key, Buffer.from(sealed, "hex"))).toThrow(sealError);
});

test("chunk keys are the ones that another program derives, and survive a structured clone", () => {
  const keys = sealer.chunkKeys!;
  expect(Buffer.from(keys.id).toString("hex")).toBe(known.chunkKeys.id);
  expect(Buffer.from(keys.blob).toString("hex")).toBe(known.chunkKeys.blob);
  const clone = structuredClone(keys);
  expect(isDeepStrictEqual([...clone.id, ...clone.blob], [...keys.id, ...keys.blob])).toBe(true);
});

test("R15: opens only in its place, and no bit may change", () => {
  const types = [
    "directory",
    "index",
    "layer",
    "manifest",
    "run",
    "lease",
    "forward",
    "condemned",
    "damaged",
    "hold",
  ] as const;
  fc.assert(
    fc.property(
      fc.uint8Array({ maxLength: 300 }),
      fc.constantFrom(...types),
      fc.string(),
      fc.nat(),
      (plain, type, key, at) => {
        const sealed = sealer.sealObject(type, key, plain);
        expect(sealed.length).toBe(plain.length + SEAL_OVERHEAD);
        expect(sealer.openObject(type, key, sealed).equals(plain)).toBe(true);
        for (const other of types) {
          if (other !== type) expect(() => sealer.openObject(other, key, sealed)).toThrow(sealError);
        }
        expect(() => sealer.openObject(type, `${key}#`, sealed)).toThrow(sealError);
        const elsewhere = masterKeySealer(
          "00000000-0000-4000-8000-000000000000",
          Buffer.from(known.masterKey, "hex"),
        );
        expect(() => elsewhere.openObject(type, key, sealed)).toThrow(sealError);
        const bit = at % (sealed.length * 8);
        sealed[bit >> 3]! ^= 1 << (bit & 7);
        expect(() => sealer.openObject(type, key, sealed)).toThrow(sealError);
      },
    ),
  );
});

test("sealing the same twice does not show that it is the same", () => {
  const plain = Buffer.from("same");
  expect(sealer.sealObject("run", "k", plain).equals(sealer.sealObject("run", "k", plain))).toBe(false);
});

test("the plain sealer hands bytes through", () => {
  const bytes = Buffer.from("bytes");
  const plain = plainSealer();
  expect(plain.openObject("run", "k", plain.sealObject("run", "k", bytes)).equals(bytes)).toBe(true);
  expect([plain.encrypted, plain.chunkKeys]).toEqual([false, undefined]);
});
