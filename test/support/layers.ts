import { hash } from "node:crypto";
import type { Layer } from "../../src/repository/layer-object.ts";
import { LayerWriter } from "../../src/repository/layer-writer.ts";
import type { MapRun } from "../../src/repository/layer.ts";
import type { PackRef } from "../../src/repository/pack-directory.ts";

/** A run as tests write it: `[first, count, "zero"]` or `[first, count, pack, slot]`, packs by number. */
export type PlainRun = readonly [number, number, "zero"] | readonly [number, number, number, number];

/** The UUID of test pack `number`. */
export function packName(number: number): string {
  return `00000000-0000-4000-8000-${number.toString(16).padStart(12, "0")}`;
}

export const TEST_SLOTS = 4096;

/** What a test pack's upload would have said; every pack has `TEST_SLOTS` slots. */
export function testRef(pack: string): PackRef {
  return {
    pack,
    digest: hash("sha256", pack, "buffer"),
    slotCount: TEST_SLOTS,
    blobBytes: TEST_SLOTS * 1000,
  };
}

export function layerOf(size: number, chunkSize: number, runs: Iterable<PlainRun>): LayerWriter {
  const writer = new LayerWriter(size, chunkSize);
  for (const [first, count, pack, slot] of runs) {
    if (pack === "zero") writer.add(first, count, "zero");
    else writer.add(first, count, { pack: packName(pack), slot });
  }
  return writer;
}

export function plainRun({ first, count, where }: MapRun): PlainRun {
  if (where === "zero") return [first, count, "zero"];
  return [first, count, parseInt(where.packRef.pack.slice(24), 16), where.slot];
}

export async function runsOf(
  map: Pick<Layer, "runs">,
  from: number,
  to: number,
  signal: AbortSignal = new AbortController().signal,
): Promise<PlainRun[]> {
  const found: PlainRun[] = [];
  for await (const run of map.runs(from, to, signal)) found.push(plainRun(run));
  return found;
}

/** A small seeded generator (mulberry32): `random(n)` is a whole number from 0 to n - 1. */
export function seeded(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}
