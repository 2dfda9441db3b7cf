import { describe, expect, test } from "vitest";
import { forecastScratch, scratchSizeOf } from "../../../src/qemu/scratch.ts";
import { seeded } from "../../support/seeded.ts";

const MiB = 1024 ** 2;
const GiB = 1024 * MiB;

function forecast(
  sizes: readonly number[],
  free: number,
  sizeMax?: number,
): ReturnType<typeof forecastScratch> {
  return forecastScratch("/scratch", sizes, free, sizeMax);
}

describe("the room for scratch images", () => {
  test("is all that they could ever need, when there is so much", () => {
    expect(forecast([10 * GiB, GiB], 100 * GiB)).toEqual([
      { bytes: scratchSizeOf(10 * GiB), threshold: undefined },
      { bytes: scratchSizeOf(GiB), threshold: undefined },
    ]);
  });

  test("is what there is, less some for others, divided by size and with a threshold", () => {
    const [large, small] = forecast([30 * GiB, 10 * GiB], 20 * GiB);
    expect(large!.bytes + small!.bytes).toBeLessThanOrEqual(19 * GiB);
    expect(large!.bytes + small!.bytes).toBeGreaterThan(18.9 * GiB);
    expect(large!.bytes / small!.bytes).toBeCloseTo(3, 1);
    for (const { bytes, threshold } of [large!, small!]) expect(threshold).toBe(Math.floor(bytes * 0.875));
  });

  test("is no more than was allowed", () => {
    const shares = forecast([30 * GiB, 10 * GiB], 100 * GiB, 4 * GiB);
    expect(shares[0]!.bytes + shares[1]!.bytes).toBeLessThanOrEqual(4 * GiB);
    expect(forecast([GiB], 100 * GiB, 50 * GiB)).toEqual(forecast([GiB], 100 * GiB));
  });

  test.each([
    ["no room to speak of", [GiB], 10 * MiB, undefined, "full", "E_SCRATCH_SPACE"],
    ["none at all", [GiB], 0, undefined, "full", "E_SCRATCH_SPACE"],
    ["less than was promised", [10 * GiB], GiB, 2 * GiB, "full", "E_SCRATCH_SPACE"],
    ["too little allowed", [GiB, GiB], 100 * GiB, 20 * MiB, "usage", "E_SCRATCH_SIZE"],
  ] as const)("is refused: %s", (_, sizes, free, sizeMax, kind, code) => {
    expect(() => forecast(sizes, free, sizeMax)).toThrow(expect.objectContaining({ kind, code }));
  });

  test("a tiny disk needs little", () => {
    expect(forecast([512 * 1024], 10 * MiB)).toEqual([
      { bytes: scratchSizeOf(512 * 1024), threshold: undefined },
    ]);
  });

  test("never promises more than there is, whatever the disks", () => {
    for (let seed = 1; seed <= 2000; seed++) {
      const random = seeded(seed);
      const sizes = Array.from({ length: 1 + random(8) }, () => (1 + random(100)) * 512 * 2 ** random(24));
      const [free, sizeMax] = [random(1000) * GiB, random(2) === 0 ? undefined : (1 + random(1000)) * GiB];
      let shares;
      try {
        shares = forecast(sizes, free, sizeMax);
      } catch {
        continue;
      }
      const total = shares.reduce((sum, { bytes }) => sum + bytes, 0);
      expect(total, `seed ${seed}`).toBeLessThanOrEqual(Math.min(free, sizeMax ?? Infinity));
      for (const [index, { bytes, threshold }] of shares.entries()) {
        const whole = bytes >= scratchSizeOf(sizes[index]!);
        if (threshold === undefined) expect(whole, `seed ${seed}`).toBe(true);
        else expect(threshold, `seed ${seed}`).toBeLessThan(bytes);
      }
    }
  });
});
