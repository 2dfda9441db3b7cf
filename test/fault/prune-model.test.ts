import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { ChunkWorkers } from "../../src/chunk/workers.ts";
import { startWorkers } from "../support/backups.ts";
import { temporaryFolder } from "../support/folder.ts";
import { memoryRepository } from "../support/memory-repository.ts";
import { PruneWorld } from "../support/prune-world.ts";
import { stopClock } from "../support/prunes.ts";
import { seeded } from "../support/seeded.ts";

/** How long, and with which first seed: `BLOCKHAUL_PRUNE_MODEL=600:12345`. */
const [SECONDS = "20", SEED] = (process.env["BLOCKHAUL_PRUNE_MODEL"] ?? "")
  .split(":")
  .filter((part) => part !== "");

const STEPS = 1500;

let workers: ChunkWorkers;
beforeAll(async () => {
  workers = await startWorkers(memoryRepository());
});
afterAll(() => workers.close());
beforeEach(stopClock);

test(
  "writers, readers, forgets and prunes, killed and stopped at any request: no generation ever misses a byte",
  async () => {
    const outcomes: Record<string, number> = {};
    const end = performance.now() + Number(SECONDS) * 1000;
    let seed = SEED === undefined ? Math.floor(performance.timeOrigin) % 1_000_000 : Number(SEED);
    let rounds = 0;
    for (; rounds === 0 || performance.now() < end; rounds++, seed++) {
      const world = new PruneWorld(seeded(seed), workers, [await temporaryFolder(), await temporaryFolder()]);
      try {
        await world.leaveDead();
        for (let step = 0; step < STEPS; step++) await world.step();
        await world.finish();
        await world.expectWhole();
      } catch (error) {
        throw new Error(`BLOCKHAUL_PRUNE_MODEL=1:${seed} failed: ${String(error)}`, { cause: error });
      }
      for (const [what, count] of Object.entries(world.outcomes))
        outcomes[what] = (outcomes[what] ?? 0) + count;
    }
    console.log(`${rounds} rounds of ${STEPS} steps, to seed ${seed - 1}:`, outcomes);
    for (const what of [
      "backup done",
      "prune done",
      "forget done",
      "restore done",
      "killed",
      "condemned",
      "deleted",
      "rewritten packs",
    ]) {
      expect(outcomes[what] ?? 0, what).toBeGreaterThan(0);
    }
  },
  (Number(SECONDS) + 120) * 1000,
);
