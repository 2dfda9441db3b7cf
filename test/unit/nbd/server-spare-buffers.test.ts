import fc from "fast-check";
import { expect, test } from "vitest";
import { SpareBuffers } from "../../../src/nbd/server/spare-buffers.ts";

const MiB = 1024 * 1024;

test("a buffer is never in two hands, has the length asked for, and few bytes are kept", () => {
  const lengths = fc.constantFrom(0, 1, 16_384, 262_144, MiB, 5 * MiB);
  const steps = fc.array(fc.tuple(fc.boolean(), lengths, fc.nat()), { maxLength: 40 });
  fc.assert(
    fc.property(steps, (list) => {
      const spare = new SpareBuffers();
      const inUse: Buffer[] = [];
      const idle = new Set<Buffer>();
      for (const [take, length, pick] of list) {
        if (take || inUse.length === 0) {
          const buffer = spare.take(length);
          expect(buffer).toHaveLength(length);
          expect(inUse.includes(buffer)).toBe(false);
          idle.delete(buffer);
          inUse.push(buffer);
        } else {
          const [given] = inUse.splice(pick % inUse.length, 1);
          spare.give(given!);
          idle.add(given!);
        }
      }
      // What comes out again of what was given was kept: all of it together is within the bound.
      let kept = 0;
      for (const length of [0, 1, 16_384, 262_144, MiB, 5 * MiB]) {
        for (let buffer = spare.take(length); idle.delete(buffer); buffer = spare.take(length))
          kept += length;
      }
      expect(kept).toBeLessThanOrEqual(8 * MiB);
    }),
    { numRuns: 50 },
  );
});

test("buffers of a usual length come again, short ones do not", () => {
  const spare = new SpareBuffers();
  const [long, short] = [spare.take(262_144), spare.take(100)];
  spare.give(long);
  spare.give(short);
  for (let count = 0; count < 100; count++) {
    expect(spare.take(262_144)).toBe(long);
    spare.give(long);
  }
  expect(spare.take(100)).not.toBe(short);
});
