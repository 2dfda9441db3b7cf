import { hash } from "node:crypto";
import { expect, test } from "vitest";
import { type Manifest, decodeManifest, encodeManifest } from "../../../src/repository/manifest.ts";
import { encodeRecord } from "../../../src/repository/record.ts";
import { masterKeySealer } from "../../../src/repository/sealing.ts";
import { testManifest } from "../../support/manifests.ts";
import { SEALINGS, TEST_REPOSITORY, memoryRepository } from "../../support/memory-repository.ts";
import { type MustFail, vectors } from "../../support/vectors.ts";

const known = vectors("manifests") as {
  source: string;
  generation: string;
  pass: { name: string; encrypted: boolean; hex: string; manifest: Manifest }[];
  fail: MustFail[];
};

const masterKey = Buffer.from(Array.from({ length: 32 }, (_, index) => index));
const plain = memoryRepository();
const sealed = { ...plain, sealer: masterKeySealer(TEST_REPOSITORY, masterKey) };

test.each(known.pass)("reads what another program wrote: $name", ({ hex, encrypted, manifest }) => {
  const bytes = Buffer.from(hex, "hex");
  const { digest, storedBytes, ...read } = decodeManifest(
    encrypted ? sealed : plain,
    known.source,
    known.generation,
    bytes,
  );
  expect(read).toEqual(manifest);
  expect([digest, storedBytes]).toEqual([hash("sha256", bytes), bytes.length]);
  if (!encrypted) expect(encodeManifest(plain, manifest).equals(bytes)).toBe(true);
});

test.each(known.fail)("refuses: $name", ({ hex, code }) => {
  const decode = (): unknown =>
    decodeManifest(plain, known.source, known.generation, Buffer.from(hex, "hex"));
  expect(decode).toThrow(expect.objectContaining({ kind: "corrupt", code }));
});

test.each(SEALINGS)("no bit can change unnoticed ($name)", ({ encrypted }) => {
  const repository = encrypted ? sealed : plain;
  const manifest = testManifest("2026-11-22T03:00:00Z");
  const stored = encodeManifest(repository, manifest);
  for (let bit = 0; bit < stored.length * 8; bit++) {
    const changed = Buffer.from(stored);
    changed[bit >> 3]! ^= 1 << (bit & 7);
    const decode = (): unknown => decodeManifest(repository, manifest.source, manifest.generation, changed);
    expect(decode, `bit ${bit}`).toThrow(expect.objectContaining({ kind: "corrupt" }));
  }
});

test.each(SEALINGS)("R15: a manifest that was put elsewhere is refused ($name)", ({ encrypted }) => {
  const repository = encrypted ? sealed : plain;
  const manifest = testManifest("2026-11-22T03:00:00Z");
  const other = testManifest("2026-11-22T03:00:01Z");
  const stored = encodeManifest(repository, manifest);
  const code = encrypted ? "E_SEAL" : "E_MISPLACED";
  for (const [source, generation] of [
    ["db", manifest.generation],
    [manifest.source, other.generation],
  ] as const) {
    const decode = (): unknown => decodeManifest(repository, source, generation, stored);
    expect(decode).toThrow(expect.objectContaining({ kind: "corrupt", code }));
  }
});

test("a manifest that its own schema refuses is not written", () => {
  const wrong = testManifest("2026-11-22T03:00:00Z", { sequence: 0 });
  expect(() => encodeManifest(plain, wrong)).toThrow(
    expect.objectContaining({ kind: "bug", code: "E_MANIFEST" }),
  );
  const huge = testManifest("2026-11-22T03:00:00Z", { writer: "x".repeat(1025) });
  expect(() => encodeManifest(plain, huge)).toThrow(expect.objectContaining({ code: "E_MANIFEST" }));
});

test("a record of another kind is no manifest", () => {
  const { source, generation } = known;
  const decode = (): unknown => decodeManifest(plain, source, generation, encodeRecord({ format: 1 }));
  expect(decode).toThrow(expect.objectContaining({ kind: "corrupt", code: "E_RECORD" }));
});
