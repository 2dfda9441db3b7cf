import { hash } from "node:crypto";
import { describe, expect, test } from "vitest";
import {
  type KeySlot,
  decodeKeySlot,
  encodeKeySlot,
  isSealed,
  sealedConfig,
  unwrapMasterKey,
} from "../../../src/repository/keys.ts";
import { TEST_REPOSITORY } from "../../support/memory-repository.ts";
import { type MustFail, vectors } from "../../support/vectors.ts";

interface Case {
  readonly name: string;
  readonly hex: string;
}

const known = vectors("keys") as {
  config: string;
  key: string;
  password: string;
  masterKey: string;
  pass: Case[];
  fail: MustFail[];
  closed: Case[];
  unsealed: Case[];
};
const config = sealedConfig(TEST_REPOSITORY, Buffer.from(known.config, "hex"));
const password = Buffer.from(known.password);
const masterKey = Buffer.from(known.masterKey, "hex");

function decode(hex: string): KeySlot {
  return decodeKeySlot(Buffer.from(hex, "hex"), TEST_REPOSITORY, known.key);
}

describe("slots that another program wrote", () => {
  test.each(known.pass)("opens: $name", async ({ hex }) => {
    const slot = decode(hex);
    expect((await unwrapMasterKey(slot, password))?.equals(masterKey)).toBe(true);
    expect(isSealed(slot, config, masterKey)).toBe(true);
  });

  test.each(known.fail)("refuses before any scrypt: $name", ({ hex, code }) => {
    expect(() => decode(hex)).toThrow(expect.objectContaining({ kind: "corrupt", code }));
  });

  test.each(known.closed)("does not open: $name", async ({ hex }) => {
    expect(await unwrapMasterKey(decode(hex), password)).toBeUndefined();
  });

  test.each(known.unsealed)("opens, but its seal is not for this: $name", async ({ hex }) => {
    const slot = decode(hex);
    expect((await unwrapMasterKey(slot, password))?.equals(masterKey)).toBe(true);
    expect(isSealed(slot, config, masterKey)).toBe(false);
  });
});

describe("a slot of our own", () => {
  const id = "9a0c9a52-3d1b-4c7e-9e63-0b6a0f5d2c11";
  const notes = { createdAt: "2026-11-22T03:00:00.000Z", label: 'Süß, "quoted"', host: "vm" };
  const encode = (): Promise<Buffer> => encodeKeySlot(config, id, notes, masterKey, password);

  test("opens with its password alone, and is written with the parameters of FORMAT.md", async () => {
    const slot = decodeKeySlot(await encode(), TEST_REPOSITORY, id);
    expect(slot).toMatchObject({ ...notes, scrypt: { n: 2 ** 17, r: 8, p: 1 } });
    expect((await unwrapMasterKey(slot, password))?.equals(masterKey)).toBe(true);
    expect(await unwrapMasterKey(slot, Buffer.from("another"))).toBeUndefined();
    expect(isSealed(slot, config, masterKey)).toBe(true);
    expect(isSealed(slot, config, Buffer.alloc(32))).toBe(false);
    expect(isSealed(slot, sealedConfig(TEST_REPOSITORY, Buffer.from("changed")), masterKey)).toBe(false);
  });

  test("two slots for one password have nothing in common", async () => {
    const [one, two] = [await encode(), await encode()].map((bytes) =>
      decodeKeySlot(bytes, TEST_REPOSITORY, id),
    );
    expect(one!.scrypt.salt).not.toBe(two!.scrypt.salt);
    expect(one!.wrapped.slice(24)).not.toBe(two!.wrapped.slice(24));
  });

  test("no bit of it can change unnoticed", async () => {
    const bytes = await encode();
    for (let bit = 0; bit < bytes.length * 8; bit++) {
      const changed = Buffer.from(bytes);
      changed[bit >> 3]! ^= 1 << (bit & 7);
      expect(() => decodeKeySlot(changed, TEST_REPOSITORY, id), `bit ${bit}`).toThrow(
        expect.objectContaining({ kind: "corrupt", code: "E_RECORD" }),
      );
    }
  });

  test("nor any byte by somebody who knows how to sum it", async () => {
    const bytes = await encode();
    const text = bytes.toString("latin1");
    const body = text.slice(0, -(',"sha256":""}\n'.length + 64));
    let opened = 0;
    // every byte is changed to its neighbour; what still is a slot has another seal, or, at most, another lock
    for (let at = 0; at < body.length; at++) {
      const changed = `${body.slice(0, at)}${String.fromCharCode(body.charCodeAt(at) ^ 1)}${body.slice(at + 1)}`;
      const digest = hash("sha256", Buffer.from(`${changed}}`, "latin1"));
      const stored = Buffer.from(`${changed},"sha256":"${digest}"}\n`, "latin1");
      let slot: KeySlot;
      try {
        slot = decodeKeySlot(stored, TEST_REPOSITORY, id);
      } catch (error) {
        expect(error).toMatchObject({ kind: "corrupt" });
        continue;
      }
      opened++;
      expect(isSealed(slot, config, masterKey), `byte ${at}: ${changed}`).toBe(false);
    }
    expect(opened).toBeGreaterThan(200); // salt, wrapped key, seal, notes
  });
});
