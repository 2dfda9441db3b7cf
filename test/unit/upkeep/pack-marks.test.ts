import { randomBytes } from "node:crypto";
import { expect, test } from "vitest";
import { newUuid } from "../../../src/repository/names.ts";
import type { PackRef } from "../../../src/repository/pack-directory.ts";
import { PackMarks } from "../../../src/upkeep/prune/pack-marks.ts";
import { seeded } from "../../support/layers.ts";

function refOf(slotCount: number, pack = newUuid()): PackRef {
  return { pack, digest: randomBytes(32), slotCount, blobBytes: slotCount * 100 };
}

test("says what a set of pairs says, whatever is marked how often", () => {
  const seed = Date.now() % 1_000_000;
  const random = seeded(seed);
  for (let round = 0; round < 20; round++) {
    const marks = new PackMarks();
    const model = new Map<string, Set<number>>();
    // names that differ in their last bytes only as well
    const refs = Array.from({ length: 1 + random(600) }, (_, index) =>
      refOf(
        1 + random(70),
        random(2) === 0 ? newUuid() : `00000000-0000-4000-8000-${index.toString(16).padStart(12, "0")}`,
      ),
    );
    for (let time = 0; time < 1000; time++) {
      const ref = refs[random(refs.length)]!;
      const number = marks.enter({ ...ref });
      const slots = model.get(ref.pack) ?? new Set();
      model.set(ref.pack, slots);
      if (random(8) === 0) continue; // named by a table, mentioned by no run
      const slot = random(ref.slotCount);
      const count = 1 + random(ref.slotCount - slot);
      marks.mark(number, slot, count);
      for (let at = slot; at < slot + count; at++) slots.add(at);
    }
    expect(marks.size, `seed ${seed}`).toBe(model.size);
    for (const ref of refs) {
      const slots = model.get(ref.pack);
      expect(marks.has(ref.pack), `seed ${seed}`).toBe((slots?.size ?? 0) > 0);
      const found = marks.get(ref.pack);
      if (slots === undefined) {
        expect(found).toBeUndefined();
        continue;
      }
      expect(found).toMatchObject({ packRef: ref, liveSlots: slots.size, liveBytes: slots.size * 100 });
      const numbers = Array.from({ length: ref.slotCount }, (_, slot) => slot);
      const marked = numbers.filter((slot) => (found!.bits[slot >> 3]! & (1 << (slot & 7))) !== 0);
      expect(marked, `seed ${seed}`).toEqual([...slots].sort((a, b) => a - b));
    }
    const all = [...marks.packs()].map(({ packRef }) => packRef.pack).sort();
    expect(all).toEqual([...model.keys()].sort());
  }
});

test.each([
  ["slots", { slotCount: 9 }],
  ["bytes", { blobBytes: 1 }],
  ["directory", { digest: randomBytes(32) }],
])("layers that do not agree on the %s of a pack are damage", (_, change) => {
  const marks = new PackMarks();
  const ref = refOf(10);
  marks.enter(ref);
  expect(() => marks.enter({ ...ref, ...change })).toThrow(
    expect.objectContaining({ kind: "corrupt", code: "E_PACK_CONFLICT" }),
  );
});
