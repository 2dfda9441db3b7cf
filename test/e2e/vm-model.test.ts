import { randomInt } from "node:crypto";
import { afterAll, beforeAll, expect, test } from "vitest";
import { KiB } from "../../src/bytes/size.ts";
import type { ChunkWorkers } from "../../src/chunk/workers.ts";
import { startWorkers } from "../support/backups.ts";
import { memoryRepository } from "../support/memory-repository.ts";
import { VmStory } from "../support/vm-story.ts";

/**
 * Random lives of a VM and its backups, against what every generation has to hold: writes before and while it is
 * backed up, runs that are killed or find no room, restarts and crashes of QEMU, snapshots, sizes, spoiled bitmaps.
 *
 * CI has a few; `BLOCKHAUL_MODEL_RUNS=200` is the long one. `BLOCKHAUL_TEST_SEED` with the seed of a life, and
 * `BLOCKHAUL_MODEL_RUNS=1`, lives it again, as far as chance is not that of the clock.
 */
const RUNS = Number(process.env["BLOCKHAUL_MODEL_RUNS"] ?? 4);
const SEED = Number(process.env["BLOCKHAUL_TEST_SEED"] ?? randomInt(1, 2 ** 31));
const STEPS = 25;

let workers: ChunkWorkers;
beforeAll(async () => {
  workers = await startWorkers(memoryRepository({ chunkSize: 256 * KiB }));
});
afterAll(() => workers.close());

test.each(Array.from({ length: RUNS }, (_, index) => SEED + index))(
  "a life of a VM (seed %i)",
  { timeout: 300_000 },
  async (seed) => {
    const story = await VmStory.begin(seed, seed % 2 === 0 ? "system" : "10", workers);
    try {
      for (let step = 0; step < STEPS; step++) await story.step();
      await story.end();
    } catch (error) {
      expect.fail(`seed ${seed}:\n${story.log.join("\n")}\n${(error as Error).stack ?? String(error)}`);
    }
  },
);
