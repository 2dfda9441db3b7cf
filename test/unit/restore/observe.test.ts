import { hash } from "node:crypto";
import { expect, test } from "vitest";
import { chunkCount } from "../../../src/chunk/grid.ts";
import type { Extent, ExtentState } from "../../../src/disk/disk.ts";
import { DiskObserver } from "../../../src/restore/observe.ts";
import { RandomDisk } from "../../support/random-disk.ts";
import { ScriptedDisk } from "../../support/scripted-disk.ts";
import { seeded } from "../../support/seeded.ts";
import { CHUNK, newBackups } from "../backup/chunks.ts";

/** What a disk might say of itself, in steps of 512 bytes; `zero` only where it is. */
function extentsOf(bytes: Buffer, random: (below: number) => number): Extent[] {
  const extents: Extent[] = [];
  for (let offset = 0; offset < bytes.length;) {
    const length = Math.min(512 * (1 + random(600)), bytes.length - offset);
    const zero = !bytes.subarray(offset, offset + length).some((byte) => byte !== 0);
    const states: ExtentState[] = zero ? ["data", "unchanged", "zero"] : ["data", "unchanged"];
    extents.push({ offset, length, state: states[random(states.length)]! });
    offset += length;
  }
  return extents;
}

test("window after window, each chunk is what it is, and none is read that need not be", async () => {
  for (let seed = 1; seed <= 30; seed++) {
    const random = seeded(seed);
    const { bytes } = new RandomDisk("target", random, CHUNK, 30);
    const extents = extentsOf(bytes, random);
    const source = new ScriptedDisk("target", bytes, { extents });
    const tools = (await newBackups()).tools();
    const geometry = { size: bytes.length, chunkSize: CHUNK };
    const observer = new DiskObserver(source, geometry, tools.workers, new AbortController());
    let [read, vouched] = [0, 0];
    const chunks = chunkCount(bytes.length, CHUNK);
    for (let from = 0, to: number; from < chunks; from = to) {
      to = Math.min(chunks, from + 1 + random(7));
      const observed = await observer.observe(from, to, () => undefined);
      for (let chunk = from; chunk < to; chunk++) {
        const content = bytes.subarray(chunk * CHUNK, (chunk + 1) * CHUNK);
        const states = extents
          .filter(({ offset, length }) => offset < (chunk + 1) * CHUNK && offset + length > chunk * CHUNK)
          .map(({ state }) => state);
        const looked = states.some((state) => state !== "unchanged");
        const where = `seed ${seed}, chunk ${chunk}`;
        expect(observed.looked(chunk), where).toBe(looked);
        if (!looked) vouched += content.length;
        else if (states.some((state) => state !== "zero")) read += content.length;
        if (!looked) continue;
        const zero = !content.some((byte) => byte !== 0);
        expect(observed.isZero(chunk), where).toBe(zero);
        expect(observed.holds(chunk, hash("sha256", content, "buffer")), where).toBe(!zero);
      }
    }
    expect([observer.bytesRead, observer.bytesVouched], `seed ${seed}`).toEqual([read, vouched]);
  }
});

test("more windows than the reads under way: an abort ends them with its reason", async () => {
  const bytes = Buffer.alloc(12 * CHUNK, 7);
  const run = new AbortController();
  const reason = new Error("stop");
  let reads = 0;
  const source = new ScriptedDisk("target", bytes, {
    onRead: () => {
      if (++reads === 2) run.abort(reason);
    },
  });
  const tools = (await newBackups()).tools();
  const geometry = { size: bytes.length, chunkSize: CHUNK };
  const observer = new DiskObserver(source, geometry, tools.workers, run);
  await observer.observe(0, 4, () => undefined);
  await expect(observer.observe(4, 12, () => undefined)).rejects.toBe(reason);
  expect(source.reading).toBe(0);
});
