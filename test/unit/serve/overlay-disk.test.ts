import { copyFile, open, readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { KiB } from "../../../src/bytes/size.ts";
import type { Range } from "../../../src/disk/disk.ts";
import { OverlayDisk, type BaseDisk } from "../../../src/serve/overlay-disk.ts";
import { OverlayFile } from "../../../src/serve/overlay-file.ts";
import { temporaryFolder } from "../../support/folder.ts";
import { MemoryDisk } from "../../support/memory-disk.ts";
import { noise } from "../../support/random-disk.ts";
import { seeded } from "../../support/seeded.ts";

const { signal } = new AbortController();
const BLOCK = 64 * KiB;
const REPOSITORY = "5f0c9a52-3d1b-4c7e-9e63-0b6a0f5d2c11";
const GENERATION = "01a20f59-ef64-72d3-8e23-fbe0257413d9";

function identityOf(
  size: number,
  disk = "vda",
  generation = GENERATION,
): Parameters<typeof OverlayFile.open>[1] {
  return { repository: REPOSITORY, generation, disk, size };
}

/** Noise with zeros in the blocks named. */
function baseOf(size: number, zeroBlocks: readonly number[] = []): MemoryDisk & BaseDisk {
  const bytes = noise(size, size);
  const zeros = zeroBlocks.map((block): Range => ({ offset: block * BLOCK, length: BLOCK }));
  for (const { offset, length } of zeros) bytes.fill(0, offset, offset + length);
  return new MemoryDisk(bytes, { zeros, readOnly: true }) as MemoryDisk & BaseDisk;
}

async function openOverlay(path: string, base: BaseDisk): Promise<{ disk: OverlayDisk; file: OverlayFile }> {
  const file = await OverlayFile.open(path, identityOf(base.size), signal);
  return { disk: new OverlayDisk(base, file), file };
}

async function content(disk: OverlayDisk, offset = 0, length = disk.size - offset): Promise<Buffer> {
  const into = Buffer.alloc(length, 0xee);
  await disk.read(offset, into, signal);
  return into;
}

/** What a crash leaves: the file as it is, under another name and without its lock. */
async function crashCopy(path: string): Promise<string> {
  await copyFile(path, `${path}.crashed`);
  return `${path}.crashed`;
}

describe("what is read", () => {
  test("is what was written last, else the base: any offsets, many at once, over restarts, against a buffer", async () => {
    const folder = await temporaryFolder();
    for (let seed = 1; seed <= 15; seed++) {
      const random = seeded(seed);
      const size = 1 + random(12 * BLOCK);
      const base = baseOf(
        size,
        [1, 3].filter((block) => (block + 1) * BLOCK <= size),
      );
      const truth = Buffer.from(base.bytes);
      const path = join(folder, `${seed}.overlay`);
      let { disk, file } = await openOverlay(path, base);
      for (let round = 0; round < 8; round++) {
        // pieces that do not overlap, written at once
        const cuts = Array.from({ length: 6 }, () => random(size + 1)).sort((a, b) => a - b);
        const writes = cuts.slice(1).map(async (end, index) => {
          const offset = cuts[index]!;
          if (end === offset) return;
          const kind = random(4);
          if (kind < 2) {
            const bytes = noise(seed * 1000 + round * 10 + index, end - offset);
            bytes.copy(truth, offset);
            await disk.write(offset, bytes, signal);
          } else {
            truth.fill(0, offset, end);
            await disk.zero(offset, end - offset, kind === 2, signal);
          }
        });
        await Promise.all(writes);
        expect((await content(disk)).equals(truth), `seed ${seed}, round ${round}`).toBe(true);
        for await (const extent of disk.extents({ offset: 0, length: size }, signal)) {
          if (extent.state !== "zero") continue;
          const zeros = truth.subarray(extent.offset, extent.offset + extent.length);
          expect(
            zeros.every((byte) => byte === 0),
            `seed ${seed}, round ${round}: said to be zero`,
          ).toBe(true);
        }
        if (random(3) === 0) {
          await file.close();
          ({ disk, file } = await openOverlay(path, base));
          expect((await content(disk)).equals(truth), `seed ${seed}, round ${round}, opened again`).toBe(
            true,
          );
        }
      }
      await file.close();
    }
  });

  test("small writes into one untouched block at once lose nothing, and read the base once", async () => {
    const base = baseOf(4 * BLOCK);
    const { disk, file } = await openOverlay(join(await temporaryFolder(), "o"), base);
    onTestFinished(() => file.close());
    const gate = Promise.withResolvers<undefined>();
    base.gate = gate.promise;
    const writes = Array.from({ length: 16 }, (_, one) =>
      disk.write(BLOCK + one * 4096, noise(one, 4096), signal),
    );
    gate.resolve(undefined);
    await Promise.all(writes);
    const found = await content(disk, BLOCK, BLOCK);
    for (let one = 0; one < 16; one++) {
      expect(found.subarray(one * 4096, (one + 1) * 4096).equals(noise(one, 4096)), `write ${one}`).toBe(
        true,
      );
    }
    expect(base.calls.filter((call) => call.startsWith("read"))).toHaveLength(1);
  });

  test("trimming takes no room where there was nothing, and whole blocks cost no data", async () => {
    const base = baseOf(8 * BLOCK, [2]);
    const { disk, file } = await openOverlay(join(await temporaryFolder(), "o"), base);
    onTestFinished(() => file.close());
    await disk.zero(2 * BLOCK + 100, 1000, true, signal);
    expect(file.states.get(2)).toBe(0);
    await disk.zero(4 * BLOCK, 3 * BLOCK, true, signal);
    expect(base.calls).toEqual([]);
    expect((await content(disk, 4 * BLOCK, 3 * BLOCK)).every((byte) => byte === 0)).toBe(true);
  });
});

describe("what lasts", () => {
  test("all that was flushed is there after a crash at any moment; what was not is old or new", async () => {
    const folder = await temporaryFolder();
    const base = baseOf(6 * BLOCK);
    const path = join(folder, "o");
    const { disk, file } = await openOverlay(path, base);
    onTestFinished(() => file.close());
    await disk.write(100, Buffer.from("flushed"), signal);
    await disk.zero(3 * BLOCK, BLOCK, true, signal);
    await disk.flush(signal);
    await disk.write(BLOCK + 5, Buffer.from("not flushed"), signal);
    const after = await openOverlay(await crashCopy(path), base);
    onTestFinished(() => after.file.close());
    const expected = Buffer.from(base.bytes);
    expected.write("flushed", 100);
    expected.fill(0, 3 * BLOCK, 4 * BLOCK);
    expect((await content(after.disk)).equals(expected)).toBe(true);
  });

  test("flushes that come while one is under way share the next one", async () => {
    const base = baseOf(4 * BLOCK);
    const { disk, file } = await openOverlay(join(await temporaryFolder(), "o"), base);
    onTestFinished(() => file.close());
    let flushes = 0;
    const { states } = file;
    const taken = states.takeDirty.bind(states);
    states.takeDirty = () => {
      flushes++;
      return taken();
    };
    await Promise.all(Array.from({ length: 20 }, () => disk.flush(signal)));
    expect(flushes).toBeLessThanOrEqual(2);
  });
});

describe("what is refused", () => {
  test("a second one on the same overlay, until the first is closed", async () => {
    const base = baseOf(BLOCK);
    const path = join(await temporaryFolder(), "o");
    const { file } = await openOverlay(path, base);
    await expect(openOverlay(path, base)).rejects.toMatchObject({ kind: "locked", code: "E_FILE_LOCKED" });
    await file.close();
    const again = await openOverlay(path, base);
    await again.file.close();
  });

  test.each([
    ["another disk", identityOf(BLOCK, "vdb")],
    ["another generation", identityOf(BLOCK, "vda", "01a20f59-ef64-72d3-8e23-fbe0257413da")],
    ["another size", identityOf(2 * BLOCK)],
    ["another repository", { ...identityOf(BLOCK), repository: "5f0c9a52-3d1b-4c7e-9e63-0b6a0f5d2c12" }],
  ])("an overlay of %s", async (_, identity) => {
    const path = join(await temporaryFolder(), "o");
    await (await OverlayFile.open(path, identityOf(BLOCK), signal)).close();
    await expect(OverlayFile.open(path, identity, signal)).rejects.toMatchObject({
      kind: "usage",
      code: "E_OVERLAY_OTHER",
    });
  });

  test("a file that is no overlay, one that was cut short, one with a wrong header or state", async () => {
    const folder = await temporaryFolder();
    const wrong = async (name: string, change: (path: string) => Promise<void>): Promise<unknown> => {
      const path = join(folder, name);
      await (await OverlayFile.open(path, identityOf(BLOCK), signal)).close();
      await change(path);
      const opening = OverlayFile.open(path, identityOf(BLOCK), signal);
      return await opening.then(
        () => undefined,
        (error: unknown) => (error as { code: string }).code,
      );
    };
    const poke =
      (offset: number) =>
      async (path: string): Promise<void> => {
        const file = await open(path, "r+");
        await file.write(Buffer.from([0xff]), 0, 1, offset);
        await file.close();
      };
    expect(await wrong("empty", (path) => truncate(path, 0))).toBe("E_OVERLAY_FORMAT");
    expect(await wrong("other", (path) => writeFile(path, Buffer.alloc(9000, 1)))).toBe("E_OVERLAY_FORMAT");
    expect(await wrong("version", poke(8))).toBe("E_OVERLAY_FORMAT");
    expect(await wrong("short", (path) => truncate(path, 5000))).toBe("E_OVERLAY");
    expect(await wrong("header", poke(20))).toBe("E_OVERLAY");
    expect(await wrong("states", poke(4096))).toBe("E_OVERLAY");
    expect((await readFile(join(folder, "other"))).length).toBe(9000); // and it was not touched
  });
});
