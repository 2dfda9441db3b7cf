import fc from "fast-check";
import { expect, test } from "vitest";
import { checkKey } from "../../../src/store/key.ts";
import * as names from "../../../src/repository/names.ts";

const uuid = fc.uuid();
const source = fc.stringMatching(/^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$/);

test("keys lead back to what they name", () => {
  fc.assert(
    fc.property(source, uuid, uuid, (name, first, second) => {
      const keys: [string, names.ObjectName][] = [
        [names.REPOSITORY_KEY, { type: "repository" }],
        [`keys/${first}.json`, { type: "key", id: first }],
        [names.packKey(first), { type: "pack", pack: first }],
        [names.layerKey(first), { type: "layer", layer: first }],
        [names.generationKey(name, first), { type: "generation", source: name, generation: first }],
        [names.runBeginKey(name, first), { type: "runBegin", source: name, run: first }],
        [names.runEndKey(name, first), { type: "runEnd", source: name, run: first }],
        [names.drillKey(name, first), { type: "drill", source: name, drill: first }],
        [names.leaseKey(name, first), { type: "lease", source: name, run: first }],
        [names.indexKey(name, first), { type: "index", source: name, id: first }],
        [names.forwardKey(first, second), { type: "forward", pack: first, id: second }],
        [names.condemnedKey(first), { type: "condemned", prune: first }],
        [names.damagedKey(first, second), { type: "damaged", pack: first, id: second }],
        [names.profileKey(name, first), { type: "profile", source: name, profile: first }],
        [names.holdKey(name, first), { type: "hold", source: name, generation: first }],
      ];
      for (const [key, name] of keys) {
        checkKey(key);
        expect(names.parseKey(key)).toEqual(name);
      }
      expect(new Set(keys.map(([key]) => key)).size).toBe(keys.length);
    }),
  );
});

const A_UUID = "5f0c9a52-3d1b-4c7e-9e63-0b6a0f5d2c11";

test.each([
  "",
  "packs/",
  "packs/x",
  `packs/${A_UUID.toUpperCase()}`,
  `packs/${A_UUID}/`,
  `/packs/${A_UUID}`,
  `packs/${A_UUID}\n`,
  `packs/${A_UUID}.tmp`,
  `generations/${A_UUID}.json`,
  `generations/./${A_UUID}.json`,
  `generations/../${A_UUID}.json`,
  `generations/a b/${A_UUID}.json`,
  `generations/${"x".repeat(129)}/${A_UUID}.json`,
  `generations/web/sub/${A_UUID}.json`,
  `runs/web/${A_UUID}.json`,
  `holds/${A_UUID}.json`,
  `holds/web/${A_UUID}`,
  "repository.json.bak",
  "README.md",
])("%j is no key of a repository", (key) => {
  expect(names.parseKey(key)).toBeUndefined();
});

test.each(["web", "a", "vm-1.example.org", "_", "a..", "x".repeat(128)])("%j is a source's name", (name) => {
  expect(names.checkSourceName(name)).toBe(name);
});

test.each(["", ".", "..", ".hidden", "a/b", "ä", "a b", "a\n", "@", "x".repeat(129), "a\0"])(
  "%j is no source's name",
  (name) => {
    expect(() => names.checkSourceName(name)).toThrow(
      expect.objectContaining({ kind: "usage", code: "E_SOURCE_NAME" }),
    );
  },
);

test("UUIDv7: the time comes back, the text sorts by it, two are never the same", () => {
  fc.assert(
    fc.property(fc.nat({ max: 2 ** 48 - 1 }), fc.nat({ max: 2 ** 48 - 1 }), (one, other) => {
      const [a, b] = [names.uuidv7(one), names.uuidv7(other)];
      expect(a).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
      expect(names.uuidTime(a)).toBe(one);
      if (one !== other) expect(a < b).toBe(one < other);
      expect(a).not.toBe(names.uuidv7(one));
    }),
  );
  // RFC 9562, appendix A.6
  expect(names.uuidTime("017f22e2-79b0-7cc3-98c4-dc0c0c07398f")).toBe(0x017f22e279b0);
  expect(names.uuidTime(A_UUID)).toBeUndefined();
});

test("UUIDs: 16 bytes and back", () => {
  fc.assert(
    fc.property(uuid, (id) => {
      expect(names.uuidText(names.uuidBytes(id))).toBe(id);
    }),
  );
  expect(names.isUuid(names.newUuid())).toBe(true);
});
