import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { formatSize, KiB, TiB } from "../../src/bytes/size.ts";
import { createRepository, openRepository } from "../../src/repository/config.ts";
import { DiskMap, type MappedDisk } from "../../src/repository/layer-stack.ts";
import { DirectoryStore } from "../../src/store/directory.ts";
import { seeded } from "../support/layers.ts";
import { simulateDisk } from "../support/simulated-disk.ts";

/*
 * Opens a generation of a full 1 TiB disk and looks 1,000 random chunks up, in a process of its own, so that its
 * memory is that of opening alone. Target: 2 s and 100 MiB.
 *
 *     node test/bench/open-generation.ts
 */
const signal = new AbortController().signal;

const CASES = [
  { name: "as a full backup leaves it", duplicatePercent: 0 },
  { name: "one chunk in ten found elsewhere", duplicatePercent: 10 },
  { name: "every chunk in another pack", duplicatePercent: 100 },
];

async function measureAll(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "open-generation-"));
  try {
    for (const [seed, { name, duplicatePercent }] of CASES.entries()) {
      const location = join(folder, String(seed));
      mkdirSync(location);
      const repository = await createRepository(new DirectoryStore(location), {}, signal);
      const shape = {
        size: TiB,
        chunkSize: 256 * KiB,
        incrementals: 10,
        dirtyChunks: 1000,
        duplicatePercent,
        seed,
      };
      const disk = await simulateDisk(repository, shape, signal);
      repository.store.close();
      console.log(
        `${name}: layers of ${disk.layers.map((layer) => formatSize(layer.storedBytes)).join(", ")}`,
      );
      const child = spawnSync(process.execPath, [import.meta.filename, location, JSON.stringify(disk)], {
        stdio: ["ignore", "inherit", "inherit"],
      });
      if (child.status !== 0) throw new Error(`The measuring process ended with ${child.status}`);
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
}

async function measure(location: string, disk: MappedDisk): Promise<void> {
  const repository = await openRepository(new DirectoryStore(location), signal);
  const rssBefore = process.resourceUsage().maxRSS * KiB;
  const started = performance.now();
  const map = await DiskMap.open(repository, disk, signal);
  const openedMs = performance.now() - started;

  const random = seeded(1);
  for (let lookup = 0; lookup < 1000; lookup++) {
    const chunk = random(map.chunks);
    for await (const run of map.runs(chunk, chunk + 1, signal)) {
      if (run.first !== chunk) throw new Error("a lookup answered for another chunk");
    }
  }
  const lookedUpMs = performance.now() - started - openedMs;
  const rssAfter = process.resourceUsage().maxRSS * KiB;
  let runs = 0;
  for await (const run of map.runs(0, map.chunks, signal)) runs += run.count > 0 ? 1 : 0;
  const readMs = performance.now() - started - openedMs - lookedUpMs;
  console.log(
    `  open ${openedMs.toFixed(0)} ms for ${map.layers.length} layers; 1,000 lookups ${lookedUpMs.toFixed(0)} ms; ` +
      `peak RSS ${formatSize(rssAfter)} (${formatSize(rssBefore)} before)\n` +
      `  all ${runs} runs ${readMs.toFixed(0)} ms; peak RSS ${formatSize(process.resourceUsage().maxRSS * KiB)}`,
  );
  repository.store.close();
}

const [location, disk] = process.argv.slice(2);
if (location === undefined) await measureAll();
else await measure(location, JSON.parse(disk!) as MappedDisk);
