import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, onTestFinished, test, vi } from "vitest";
import { KiB } from "../../../src/bytes/size.ts";
import { RawFile } from "../../../src/disk/raw-file.ts";
import { OverlayDisk, type BaseDisk } from "../../../src/serve/overlay-disk.ts";
import { OverlayFile } from "../../../src/serve/overlay-file.ts";
import { temporaryFolder } from "../../support/folder.ts";
import { MemoryDisk } from "../../support/memory-disk.ts";
import { noise } from "../../support/random-disk.ts";
import { seeded } from "../../support/seeded.ts";

const { signal } = new AbortController();
const BLOCK = 64 * KiB;
const SECTOR = 512;
const SIZE = 6 * BLOCK;
const IDENTITY = {
  repository: "5f0c9a52-3d1b-4c7e-9e63-0b6a0f5d2c11",
  generation: "01a20f59-ef64-72d3-8e23-fbe0257413d9",
  disk: "vda",
  size: SIZE,
};

/** What was done to the overlay's file, in order; a sync makes durable what stands before its beginning. */
type Event =
  | { readonly what: "write"; readonly offset: number; readonly bytes: Buffer }
  | { readonly what: "synced"; readonly upTo: number }
  /** To the client: from here on these sectors must not be older than that. */
  | { readonly what: "flushed"; readonly versions: ReadonlyMap<number, number> };

/** Notes writes and syncs of every overlay that is open. */
function watchFiles(events: Event[]): void {
  const write = RawFile.prototype.write;
  const flush = RawFile.prototype.flush;
  vi.spyOn(RawFile.prototype, "write").mockImplementation(async function (
    this: RawFile,
    offset,
    bytes,
    ofCall,
  ) {
    await write.call(this, offset, bytes, ofCall);
    events.push({ what: "write", offset, bytes: Buffer.from(bytes) });
  });
  vi.spyOn(RawFile.prototype, "flush").mockImplementation(async function (this: RawFile) {
    const upTo = events.length;
    await flush.call(this);
    events.push({ what: "synced", upTo });
  });
  onTestFinished(() => void vi.restoreAllMocks());
}

/**
 * The file after the power went when so many events had happened: what was synced, and of the rest what harms most, the
 * states without the data, or only some of it.
 */
function afterPowerLoss(
  begun: Buffer,
  events: readonly Event[],
  dataOffset: number,
  survives: (state: boolean) => boolean,
): Buffer {
  const synced = events.findLast(({ what }) => what === "synced");
  const durable = synced?.what === "synced" ? synced.upTo : 0;
  const image = Buffer.from(begun);
  events.forEach((event, index) => {
    if (event.what !== "write") return;
    if (index < durable || survives(event.offset < dataOffset)) event.bytes.copy(image, event.offset);
  });
  return image;
}

test("the power goes at any moment: what was flushed is there, every sector is one that was written", async () => {
  const folder = await temporaryFolder();
  for (let seed = 1; seed <= 4; seed++) {
    const random = seeded(seed);
    const base = new MemoryDisk(noise(seed, SIZE), { zeros: [], readOnly: true }) as MemoryDisk & BaseDisk;
    const path = join(folder, `${seed}`);
    const file = await OverlayFile.open(path, IDENTITY, signal);
    const begun = await readFile(path);
    const { dataOffset } = file.layout;
    const events: Event[] = [];
    watchFiles(events);
    const disk = new OverlayDisk(base, file);
    // by sector: all contents it ever had, the base's first
    const history = Array.from({ length: SIZE / SECTOR }, (_, sector) => [
      base.bytes.subarray(sector * SECTOR, (sector + 1) * SECTOR),
    ]);
    const change = async (offset: number, length: number, zero: boolean): Promise<void> => {
      const bytes = zero ? Buffer.alloc(length) : noise(seed * 1000 + events.length + offset, length);
      for (let at = 0; at < length; at += SECTOR) {
        history[(offset + at) / SECTOR]!.push(bytes.subarray(at, at + SECTOR));
      }
      if (zero) await disk.zero(offset, length, true, signal);
      else await disk.write(offset, bytes, signal);
    };
    const flush = async (): Promise<void> => {
      const versions = new Map(history.map((contents, sector) => [sector, contents.length - 1]));
      await disk.flush(signal);
      events.push({ what: "flushed", versions });
    };
    for (let step = 0; step < 12; step++) {
      // one after the other, so that the newest of two is known, but flushes beside them
      const flushing = random(2) === 0 ? flush() : undefined;
      for (let one = 0; one < 3; one++) {
        const offset = random(SIZE / SECTOR) * SECTOR;
        const most = random(3) === 0 ? 2 * BLOCK : 4 * KiB;
        const length = Math.min(SIZE - offset, (1 + random(most / SECTOR)) * SECTOR);
        await change(offset, length, random(3) === 0);
      }
      await flushing;
    }
    await flush();
    await file.close();
    vi.restoreAllMocks();

    for (let moment = 0; moment <= events.length; moment++) {
      const happened = events.slice(0, moment);
      const flushed = happened.findLast(({ what }) => what === "flushed");
      for (const survives of [(state: boolean) => state, () => random(2) === 0, () => false]) {
        const lost = join(folder, "lost");
        await writeFile(lost, afterPowerLoss(begun, happened, dataOffset, survives));
        const again = await OverlayFile.open(lost, IDENTITY, signal);
        const found = Buffer.alloc(SIZE);
        await new OverlayDisk(base, again).read(0, found, signal);
        await again.close();
        history.forEach((contents, sector) => {
          const now = found.subarray(sector * SECTOR, (sector + 1) * SECTOR);
          const oldest = flushed?.what === "flushed" ? flushed.versions.get(sector)! : 0;
          const good = contents.slice(oldest).some((content) => content.equals(now));
          if (!good) expect.fail(`seed ${seed}, event ${moment}, sector ${sector} is older or never was`);
        });
      }
    }
  }
});
