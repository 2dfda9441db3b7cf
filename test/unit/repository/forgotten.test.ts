import { expect, test } from "vitest";
import {
  decodeForgotten,
  encodeForgotten,
  findForgotten,
  type Forgotten,
} from "../../../src/repository/forgotten.ts";
import type { Manifest } from "../../../src/repository/manifest.ts";
import { masterKeySealer } from "../../../src/repository/sealing.ts";
import { TEST_REPOSITORY, memoryRepository } from "../../support/memory-repository.ts";
import { type MustFail, vectors } from "../../support/vectors.ts";

const never = new AbortController().signal;
const known = vectors("forgotten") as {
  source: string;
  generation: string;
  key: string;
  manifest: Manifest;
  pass: { name: string; encrypted: boolean; hex: string; record: Forgotten }[];
  fail: MustFail[];
};
const masterKey = Buffer.from(Array.from({ length: 32 }, (_, index) => index));
const plain = memoryRepository();
const sealed = { ...plain, sealer: masterKeySealer(TEST_REPOSITORY, masterKey) };

test.each(known.pass)("reads what another program wrote: $name", async ({ hex, encrypted, record }) => {
  const bytes = Buffer.from(hex, "hex");
  const repository = { ...(encrypted ? sealed : plain), store: memoryRepository().store };
  expect(decodeForgotten(repository, known.source, known.generation, bytes)).toEqual(record);
  if (!encrypted) expect(encodeForgotten(repository, record).equals(bytes)).toBe(true);
  await repository.store.put(known.key, bytes, never);
  const found = await findForgotten(repository, known, never);
  expect(found?.stored.equals(Buffer.from(record.manifest, "base64"))).toBe(true);
  expect(found?.manifest).toMatchObject(known.manifest);
});

test.each(known.fail)("refuses: $name", ({ hex, code }) => {
  const decode = (): unknown =>
    decodeForgotten(plain, known.source, known.generation, Buffer.from(hex, "hex"));
  expect(decode).toThrow(expect.objectContaining({ kind: "corrupt", code }));
});
